# `cmake --install` makes a prefix that can be moved: programs find their libraries relative to themselves.
# LibTorch's CPU half goes along; gRPC and the other system libraries come from the distribution's packages.
install(TARGETS ditserve ditctl RUNTIME DESTINATION bin)
install(DIRECTORY config proto DESTINATION share/ditserve
        FILES_MATCHING PATTERN "*.yaml" PATTERN "*.json" PATTERN "*.proto")
install(FILES LICENSE DESTINATION share/doc/ditserve)

# libtorch_cpu looks for the libraries it needs in its own folder too.
cmake_path(GET LIBTORCH_CPU_LIBRARY PARENT_PATH torch_lib)
set(cuda_lib ${torch_lib}/../../nvidia/cu13/lib)
install(FILES ${torch_lib}/libtorch_cpu.so ${torch_lib}/libc10.so DESTINATION ${DITSERVE_LIBDIR})
foreach(library ${torch_lib}/libgomp.so.1 ${cuda_lib}/libcudart.so.13 ${cuda_lib}/libcupti.so.13)
  # A LibTorch built without CUDA, or with the system's OpenMP, has none of these.
  install(FILES ${library} DESTINATION ${DITSERVE_LIBDIR} OPTIONAL)
endforeach()
install(DIRECTORY ${torch_lib}/../../ DESTINATION share/doc/ditserve/licences
        FILES_MATCHING PATTERN "*.dist-info/*" PATTERN torch EXCLUDE PATTERN nvidia EXCLUDE)
