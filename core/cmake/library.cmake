# What other projects link: tessera::tessera, here and after find_package(tessera). One library of
# the objects of all folders; how those are compiled (warnings, machine) is not the user's concern.
set(parts core core_simt simt conv_tiles kernels kernels_simt autograd layers)
if(TESSERA_CUDA)
  list(APPEND parts core_gpu kernels_gpu)
endif()
list(TRANSFORM parts REPLACE "(.+)" "$<TARGET_OBJECTS:tessera_\\1>")
add_library(tessera STATIC ${parts})
add_library(tessera::tessera ALIAS tessera)
set_target_properties(tessera PROPERTIES LINKER_LANGUAGE CXX)  # also with nvcc's objects
target_compile_features(tessera INTERFACE cxx_std_20)
target_include_directories(tessera INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
                                             $<INSTALL_INTERFACE:include/tessera>)
target_link_libraries(tessera PRIVATE Threads::Threads OpenMP::OpenMP_CXX DNNL::dnnl Boost::context)
if(TESSERA_CUDA)
  # tessera::cudart is the same file, found without nvcc (tesseraConfig.cmake.in).
  target_link_libraries(tessera PRIVATE $<BUILD_INTERFACE:CUDA::cudart_static>
                                        $<INSTALL_INTERFACE:tessera::cudart> ${CMAKE_DL_LIBS})
endif()
if(TESSERA_SANITIZE)
  target_link_options(tessera INTERFACE -fsanitize=${TESSERA_SANITIZE})
endif()
