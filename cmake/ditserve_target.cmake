# Compile settings that every target of ours has.
function(ditserve_target target)
  target_include_directories(${target} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
  set(warnings -Wall -Wextra -Wpedantic -Wno-missing-field-initializers $<$<BOOL:${DITSERVE_WERROR}>:-Werror>)
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${warnings}>")
  if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
    target_compile_options(${target} PRIVATE -Wthread-safety)
    if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS 17)
      # It has C++20's coroutines, but does not say so to libstdc++'s <coroutine>.
      target_compile_definitions(${target} PUBLIC __cpp_impl_coroutine=201902L)
    endif()
  endif()

  get_target_property(type ${target} TYPE)
  if(type STREQUAL EXECUTABLE AND DITSERVE_SANITIZE STREQUAL thread)
    target_sources(${target} PRIVATE ${PROJECT_SOURCE_DIR}/tests/sanitizers/tsan_absl.cc)
  endif()
endfunction()
