# Builds _cuda: kernels, the launchers around them and the bindings; static cudart, so that it loads without a driver.
if(FLOWKERNELS_CUDA_ARCHS STREQUAL "all")
  # PTX of 100 too: what a driver can compile for the devices between it and 120 (sm_103, sm_110).
  set(archs 75-real 80-real 86-real 89-real 90-real 100 120)
elseif(FLOWKERNELS_CUDA_ARCHS)
  set(archs ${FLOWKERNELS_CUDA_ARCHS})
else()
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE found ERROR_QUIET RESULT_VARIABLE failed)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]+" archs "${found}")
  if(failed OR NOT archs)
    set(archs 80-real 90)
  else()
    list(TRANSFORM archs REPLACE "\\." "")
    list(TRANSFORM archs APPEND "-real")
    list(REMOVE_DUPLICATES archs)
  endif()
endif()
set(CMAKE_CUDA_ARCHITECTURES ${archs})
set(CMAKE_CUDA_STANDARD 17)
enable_language(CUDA)

list(TRANSFORM FK_CUDA_OPS REPLACE "(.+)" "csrc/\\1/\\1_cuda.cu" OUTPUT_VARIABLE kernels)
add_library(cuda_kernels OBJECT ${kernels} csrc/common/device_cuda.cu)
# Not the flags of the C++ compiler: nvcc takes no -Wall.
set_property(TARGET cuda_kernels PROPERTY COMPILE_OPTIONS -Xcompiler=-fPIC,-fvisibility=hidden
             -Xcompiler=-fstack-protector-strong,-U_FORTIFY_SOURCE,-D_FORTIFY_SOURCE=2)
# What it compresses, only drivers from CUDA 12.4 on unpack; those of CUDA 13 all do. nvcc before 12.8 does not know it.
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
  target_compile_options(cuda_kernels PRIVATE --compress-mode=size)
endif()
# Of networks CUDA has what goes around the library's products, with arguments of its own.
pybind11_add_module(_cuda MODULE NO_EXTRAS csrc/cuda_bindings.cpp ${FK_CUDA_ARGS} csrc/net/epilogue_args.cpp
                    csrc/autoregressive_inverse/sweep_gpu_args.cpp csrc/monotone_net/monotone_gpu_args.cpp
                    $<TARGET_OBJECTS:cuda_kernels>)
list(TRANSFORM archs REPLACE "^([0-9]+)(-real)?$" "sm_\\1" OUTPUT_VARIABLE names)
list(JOIN names ", " names)
target_compile_definitions(_cuda PRIVATE "FK_CUDA_ARCHS=\"${names}\"")
set_property(SOURCE csrc/common/device_cuda.cu PROPERTY COMPILE_DEFINITIONS "FK_CUDA_ARCHS=\"${names}\"")
set_target_properties(_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static LINKER_LANGUAGE CXX)
target_link_directories(_cuda PRIVATE ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES})
target_link_libraries(_cuda PRIVATE cudart_static dl rt pthread)
