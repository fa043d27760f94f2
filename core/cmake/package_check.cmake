# A package is for other machines, so a build for this one's CPU does not become one.
if(NOT CPACK_TESSERA_PORTABLE)
  message(FATAL_ERROR "this build is for the CPU of this machine (-march=native): "
                      "use ./run package, or configure with -DTESSERA_PORTABLE=ON")
endif()
