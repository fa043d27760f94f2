# cmake --install: programs, the library, its headers (as they are included here: "core/tensor.h"),
# and what find_package(tessera) reads. The prefix may be moved.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

if(TESSERA_APPS)
  install(TARGETS train denoise)
endif()
install(TARGETS tessera EXPORT tessera)
install(DIRECTORY core autograd layers DESTINATION include/tessera
        FILES_MATCHING PATTERN "*.h" PATTERN simt EXCLUDE PATTERN cuda EXCLUDE)
install(FILES kernels/kernels.h kernels/adam.h DESTINATION include/tessera/kernels)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} RENAME copyright)

set(files ${CMAKE_INSTALL_LIBDIR}/cmake/tessera)
if(TESSERA_CUDA)
  set(cuda ${CUDAToolkit_VERSION_MAJOR}.${CUDAToolkit_VERSION_MINOR})
endif()
install(EXPORT tessera NAMESPACE tessera:: FILE tesseraTargets.cmake DESTINATION ${files})
configure_package_config_file(core/cmake/tesseraConfig.cmake.in tesseraConfig.cmake
                              INSTALL_DESTINATION ${files} NO_SET_AND_CHECK_MACRO)
# Before 1.0, a minor version may change any interface.
write_basic_package_version_file(tesseraConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/tesseraConfig.cmake
              ${PROJECT_BINARY_DIR}/tesseraConfigVersion.cmake DESTINATION ${files})
