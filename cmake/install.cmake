# `cmake --install` makes a prefix that can be moved: programs find their libraries relative to themselves.
# LibTorch's CPU half goes along; gRPC and the other system libraries come from the distribution's packages.
install(TARGETS ditserve ditctl RUNTIME DESTINATION bin)
install(DIRECTORY config DESTINATION share/ditserve FILES_MATCHING PATTERN "*.yaml")
install(DIRECTORY proto DESTINATION share/ditserve FILES_MATCHING PATTERN "*.proto")
install(FILES LICENSE DESTINATION share/doc/ditserve)

# libtorch_cpu looks for the libraries it needs in its own folder too. A LibTorch that was built without CUDA, or with
# the system's OpenMP, has none of the latter three.
cmake_path(GET LIBTORCH_CPU_LIBRARY PARENT_PATH torch_lib)
set(nvidia_lib ${torch_lib}/../../nvidia/cu13/lib)
install(FILES ${torch_lib}/libtorch_cpu.so ${torch_lib}/libc10.so DESTINATION ${DITSERVE_LIBDIR})
install(FILES ${torch_lib}/libgomp.so.1 ${nvidia_lib}/libcudart.so.13 ${nvidia_lib}/libcupti.so.13
        DESTINATION ${DITSERVE_LIBDIR} OPTIONAL)
file(GLOB licences ${torch_lib}/../../*.dist-info)
install(DIRECTORY ${licences} DESTINATION share/doc/ditserve/licences)

# `cpack` makes a Debian package of the same files, below /usr.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_CONTACT "the ditserve authors")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Forward passes of diffusion transformers larger than the accelerator's memory")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${torch_lib} ${nvidia_lib})
include(CPack)
