# Compiler settings shared by every target, and the functions that declare libraries and tests.

add_library(rwkvx_options INTERFACE)
target_compile_options(rwkvx_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wno-unknown-pragmas>)
# g++ 12 warns of overlaps in std::string that are not there (GCC bug 105651).
target_compile_options(rwkvx_options INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>)
target_include_directories(rwkvx_options INTERFACE ${PROJECT_SOURCE_DIR}/src)
if(RWKVX_SANITIZE)
  target_compile_options(rwkvx_options INTERFACE -fsanitize=${RWKVX_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(rwkvx_options INTERFACE -fsanitize=${RWKVX_SANITIZE})
  if(RWKVX_SANITIZE MATCHES "undefined")
    target_compile_options(rwkvx_options INTERFACE -fno-sanitize-recover=undefined)
  endif()
endif()
if(RWKVX_FUZZERS)
  # The fuzzers steer by what the libraries' code reports it has run.
  target_compile_options(rwkvx_options INTERFACE -fsanitize=fuzzer-no-link)
endif()

# rwkvx_library(base SOURCES a.cc b.cc DEPENDS other): target rwkvx_base in the current folder.
function(rwkvx_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPENDS;PRIVATE" ${ARGN})
  add_library(rwkvx_${name} STATIC ${arg_SOURCES})
  target_link_libraries(rwkvx_${name} PUBLIC rwkvx_options ${arg_DEPENDS} PRIVATE ${arg_PRIVATE})
endfunction()

# rwkvx_test(name SOURCES a_test.cc DEPENDS rwkvx_x [PREFIX emulated.] [FILTER *cuda*]): a GoogleTest program, registered
# with ctest case by case, with a prefix, and only those that the filter takes.
function(rwkvx_test name)
  cmake_parse_arguments(arg "" "PREFIX;FILTER" "SOURCES;DEPENDS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE rwkvx_options ${arg_DEPENDS} GTest::gtest GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE RWKVX_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data")
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  # The tests' own code: optimising it costs more time than it saves.
  if(RWKVX_SANITIZE)
    target_compile_options(${name} PRIVATE -O0)
  else()
    target_compile_options(${name} PRIVATE -O1)
  endif()
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 120 TEST_PREFIX "${arg_PREFIX}" TEST_FILTER "${arg_FILTER}"
    PROPERTIES TIMEOUT 600)
endfunction()
