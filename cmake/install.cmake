# `cmake --install` makes a prefix that can be moved: programs find their libraries relative to themselves.
# LibTorch's CPU half goes along; gRPC and the other system libraries come from the distribution's packages.
install(TARGETS ditserve ditctl RUNTIME DESTINATION bin)
install(DIRECTORY config DESTINATION share/ditserve FILES_MATCHING PATTERN "*.yaml")
install(DIRECTORY proto DESTINATION share/ditserve FILES_MATCHING PATTERN "*.proto")

# libtorch_cpu looks for the libraries it needs in its own folder too. A LibTorch that was built without CUDA, or with
# the system's OpenMP, has none of the latter three.
cmake_path(GET LIBTORCH_CPU_LIBRARY PARENT_PATH torch_lib)
set(nvidia_lib ${torch_lib}/../../nvidia/cu13/lib)
install(FILES ${torch_lib}/libtorch_cpu.so ${torch_lib}/libc10.so DESTINATION ${DITSERVE_LIBDIR})
install(FILES ${torch_lib}/libgomp.so.1 ${nvidia_lib}/libcudart.so.13 ${nvidia_lib}/libcupti.so.13
        DESTINATION ${DITSERVE_LIBDIR} OPTIONAL)

# Not in share/doc, which small systems leave out: these have to go along.
file(GLOB licences ${torch_lib}/../../*.dist-info)
install(FILES LICENSE DESTINATION share/ditserve/licences)
install(DIRECTORY ${licences} DESTINATION share/ditserve/licences)

# Their options are those that the programs tell.
find_package(Python3 REQUIRED COMPONENTS Interpreter)
set(manual_pages ${PROJECT_BINARY_DIR}/man/ditserve.8.gz ${PROJECT_BINARY_DIR}/man/ditctl.1.gz)
add_custom_command(OUTPUT ${manual_pages}
  COMMAND Python3::Interpreter ${PROJECT_SOURCE_DIR}/scripts/manual-pages $<TARGET_FILE_DIR:ditserve> man
  DEPENDS ditserve ditctl scripts/manual-pages deploy/man/ditserve.8.in deploy/man/ditctl.1.in)
add_custom_target(manual_pages ALL DEPENDS ${manual_pages})
install(FILES ${PROJECT_BINARY_DIR}/man/ditserve.8.gz DESTINATION share/man/man8)
install(FILES ${PROJECT_BINARY_DIR}/man/ditctl.1.gz DESTINATION share/man/man1)
