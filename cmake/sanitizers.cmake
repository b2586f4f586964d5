# Instruments everything that is built here, the generated code included: a sanitizer that sees half of a program
# reports what is not there and misses what is.
if(DITSERVE_SANITIZE)
  add_compile_options(-fsanitize=${DITSERVE_SANITIZE} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${DITSERVE_SANITIZE})
  if(DITSERVE_SANITIZE MATCHES undefined)
    add_compile_options(-fno-sanitize-recover=undefined)
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    # Instrumented code is too tangled for these two to judge.
    add_compile_options(-Wno-maybe-uninitialized -Wno-stringop-overflow)
    if(DITSERVE_SANITIZE STREQUAL thread)
      add_compile_options(-Wno-tsan)  # Asio has fences, which ThreadSanitizer does not see; it has mutexes beside them.
    endif()
  endif()
endif()
if(DITSERVE_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()
