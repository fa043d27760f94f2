# cpack -G DEB, as `./run package` calls it: tessera_<version>_<architecture>.deb.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_VENDOR "The tessera authors")
set(CPACK_PACKAGE_CONTACT "The tessera authors")
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)

# What programs are linked to is found in them, of the version that is installed here.
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
# Nothing of this is needed to start: the images that `train` takes by default, and what
# find_package(tessera) looks for.
set(recommends dataset-fashion-mnist libboost-context-dev libdnnl-dev ocl-icd-opencl-dev
               opencl-headers)
set(suggests cmake g++)
set(kernels "Without CUDA kernels for GPUs.")
if(TESSERA_CUDA)
  # NVIDIA's packages. cuBLAS is loaded at its first use, the driver by the CUDA runtime.
  string(REPLACE . - version ${cuda})
  list(APPEND recommends libcublas-${version})
  list(APPEND suggests cuda-cudart-dev-${version} libcuda1)
  list(JOIN CMAKE_CUDA_ARCHITECTURES ", " architectures)
  string(REGEX REPLACE "([0-9])([a-z]?)(-real)?(,|$)" ".\\1\\2\\4" architectures "${architectures}")
  set(kernels "With CUDA ${cuda} kernels for GPUs of compute capability ${architectures}.")
endif()
list(JOIN recommends ", " CPACK_DEBIAN_PACKAGE_RECOMMENDS)
list(JOIN suggests ", " CPACK_DEBIAN_PACKAGE_SUGGESTS)

set(machine)
if(NOT TESSERA_PORTABLE)
  set(machine "\nBuilt for the CPU of one machine (-march=native): others may not run it.")
endif()
set(CPACK_DEBIAN_PACKAGE_DESCRIPTION
  "The programs train and denoise, and the C++ library that they are made of
(find_package(tessera), target tessera::tessera).
${kernels}${machine}")

# Looked at by package_check.cmake when the package is made.
set(CPACK_TESSERA_PORTABLE ${TESSERA_PORTABLE})
set(CPACK_PROJECT_CONFIG_FILE ${PROJECT_SOURCE_DIR}/core/cmake/package_check.cmake)
include(CPack)
