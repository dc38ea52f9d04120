# What tests/test_hardening.py reads in the built modules. None of it is in a kernel's loops.
set(CMAKE_SKIP_RPATH ON)  # nothing is searched for in a folder of the machine that built this
if(NOT APPLE AND NOT FK_SANITIZE)  # a sanitizer has checks of its own
  # Distributions may set another level; none works without optimisation.
  set(FK_HARDENED -fstack-protector-strong $<$<CONFIG:Release>:-U_FORTIFY_SOURCE> $<$<CONFIG:Release>:-D_FORTIFY_SOURCE=2>)
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:${FK_HARDENED}>")
  add_link_options(-Wl,-z,relro,-z,now,-z,noexecstack)
endif()
