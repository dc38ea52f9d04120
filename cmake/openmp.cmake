# fk_openmp: what kernels need to run on torch's threads. Without it they run on one, and python -m flowkernels.info
# says so. There must be one OpenMP in the process, torch's: on Linux libgomp. Clang compiles for its own libomp, so
# common/parallel.h calls libgomp by name there. On macOS torch brings a libomp that ends the process where it finds
# a second one.
add_library(fk_openmp INTERFACE)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  find_package(OpenMP COMPONENTS CXX)
  if(OpenMP_CXX_FOUND)
    target_link_libraries(fk_openmp INTERFACE OpenMP::OpenMP_CXX)
  endif()
elseif(CMAKE_SYSTEM_NAME STREQUAL "Linux" AND NOT CMAKE_DISABLE_FIND_PACKAGE_OpenMP)
  include(CheckCXXSourceCompiles)
  set(CMAKE_REQUIRED_LIBRARIES gomp)
  check_cxx_source_compiles("extern \"C\" int omp_get_thread_num(); int main() { return omp_get_thread_num(); }"
                            FK_HAS_LIBGOMP)
  unset(CMAKE_REQUIRED_LIBRARIES)
  if(FK_HAS_LIBGOMP)
    target_compile_definitions(fk_openmp INTERFACE FK_LIBGOMP)
    target_link_libraries(fk_openmp INTERFACE gomp)
  endif()
endif()
if(NOT OpenMP_CXX_FOUND AND NOT FK_HAS_LIBGOMP)
  message(STATUS "No OpenMP that torch would share: kernels will run on one thread")
  target_compile_options(fk_openmp INTERFACE -Wno-unknown-pragmas)
endif()
