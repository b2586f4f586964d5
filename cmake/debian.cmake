# `cpack` makes a Debian package: what is installed, below /usr and stripped, and the service.
set(DITSERVE_MAINTAINER "ditserve maintainers <maintainers@ditserve.invalid>" CACHE STRING
    "Who maintains the Debian package: NAME <ADDRESS>")
set(debian ${PROJECT_SOURCE_DIR}/deploy/debian)
set(systemd ${PROJECT_SOURCE_DIR}/deploy/systemd)
set(changelog ${PROJECT_BINARY_DIR}/debian/changelog)

configure_file(${debian}/changelog.in ${changelog} @ONLY)
execute_process(COMMAND gzip -9nfk ${changelog} COMMAND_ERROR_IS_FATAL ANY)
file(WRITE ${PROJECT_BINARY_DIR}/debian/conffiles "/etc/ditserve/ditserve.yaml\n")

# Of the package alone: `cmake --install` writes to its prefix and nowhere else.
function(install_in_package)
  install(${ARGN} COMPONENT debian EXCLUDE_FROM_ALL)
endfunction()
install_in_package(FILES config/ditserve.yaml DESTINATION /etc/ditserve)
install_in_package(FILES ${systemd}/ditserve.service DESTINATION lib/systemd/system)
install_in_package(FILES ${systemd}/ditserve.sysusers DESTINATION lib/sysusers.d RENAME ditserve.conf)
install_in_package(FILES ${debian}/copyright DESTINATION share/doc/ditserve)
install_in_package(FILES ${changelog}.gz DESTINATION share/doc/ditserve RENAME changelog.Debian.gz)
install_in_package(FILES ${debian}/lintian-overrides DESTINATION share/lintian/overrides RENAME ditserve)
# CMake strips what it built itself. A fifth of libtorch_cpu is names that nobody looks up.
install(CODE "file(GLOB libraries \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${DITSERVE_LIBDIR}/*.so*\")
  execute_process(COMMAND ${CMAKE_STRIP} --strip-unneeded \${libraries} COMMAND_ERROR_IS_FATAL ANY)"
  COMPONENT debian EXCLUDE_FROM_ALL)

set(CPACK_GENERATOR DEB)
set(CPACK_INSTALL_CMAKE_PROJECTS ${PROJECT_BINARY_DIR};ditserve;ALL;/;${PROJECT_BINARY_DIR};ditserve;debian;/)
set(CPACK_SET_DESTDIR ON)
set(CPACK_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_PACKAGE_CONTACT ${DITSERVE_MAINTAINER})
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_RELEASE 1)
set(CPACK_DEBIAN_PACKAGE_SECTION net)
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "forward passes of diffusion transformers larger than the accelerator")
set(CPACK_DEBIAN_PACKAGE_DESCRIPTION
"A gRPC server that loads a diffusion transformer once and lets each request say
how its weights are to be held: on the device, in host memory or on disk. All
requests share one hard budget for each memory.

LibTorch's CPU half is in the package, for Debian has no package of it.")
# Where systemd is not, the small one of the two makes the service's user.
set(CPACK_DEBIAN_PACKAGE_DEPENDS "systemd-standalone-sysusers | systemd-sysusers")
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA
  ${debian}/postinst ${debian}/prerm ${debian}/postrm ${PROJECT_BINARY_DIR}/debian/conffiles)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${torch_lib} ${nvidia_lib})
include(CPack)
