# Binds the addon to no glibc symbol newer than LONGSEQ_GLIBC, so that one compiled on a new system also loads on an old
# cluster. The link does not see the system's glibc but stubs made from it: empty libraries that export the same names,
# each with the newest version up to LONGSEQ_GLIBC. Names that later moved between libraries (pthread_create, dlopen: 2.34)
# or changed their version (exp, pow: 2.29) so get the old one, which every later glibc still has. A name that did not
# exist then keeps its version: cuda/core/glibc.cc defines the few that we need, and test/package/glibc.test.ts finds any
# other. Where stubs cannot be made (no glibc, old binutils) the addon needs what the system's libraries need.
set(LONGSEQ_GLIBC 2.28 CACHE STRING "Newest glibc symbols that the addon may need")
set(LONGSEQ_GLIBC_OPTIONS "")
set(stubs ${CMAKE_BINARY_DIR}/glibc-${LONGSEQ_GLIBC})

function(longseq_compiler_file name result)
  execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=${name}
    OUTPUT_VARIABLE path OUTPUT_STRIP_TRAILING_WHITESPACE)
  set(${result} ${path} PARENT_SCOPE)
endfunction()

function(longseq_stub soname)
  longseq_compiler_file(${soname} library)
  execute_process(COMMAND ${CMAKE_NM} -D --defined-only --with-symbol-versions ${library}
    OUTPUT_VARIABLE symbols ERROR_QUIET)
  string(REGEX MATCHALL "[A-Za-z] [A-Za-z0-9_.]+@@?GLIBC_[0-9.]+" symbols "${symbols}")
  set(names "")
  foreach(symbol IN LISTS symbols)
    string(REGEX MATCH "^(.) ([^@]+)@@?GLIBC_(.+)$" symbol "${symbol}")
    set(kind ${CMAKE_MATCH_1})
    set(name ${CMAKE_MATCH_2})
    set(version ${CMAKE_MATCH_3})
    if(NOT DEFINED version_${name})
      list(APPEND names ${name})
    elseif(version VERSION_GREATER LONGSEQ_GLIBC)
      if(version VERSION_GREATER version_${name})
        continue()
      endif()
    elseif(version VERSION_LESS version_${name} AND NOT version_${name} VERSION_GREATER LONGSEQ_GLIBC)
      continue()
    endif()
    set(version_${name} ${version})
    set(type_${name} function)
    if(kind MATCHES "[VDBRG]")
      set(type_${name} object)
    endif()
  endforeach()

  set(assembly ".data\n")
  set(versions "")
  foreach(name IN LISTS names)
    string(APPEND assembly ".globl ${name}\n.type ${name},%${type_${name}}\n${name}:\n")
    list(APPEND versions ${version_${name}})
    string(APPEND exports_${version_${name}} " ${name};")
  endforeach()
  list(REMOVE_DUPLICATES versions)
  set(script "")
  foreach(version IN LISTS versions)
    string(APPEND script "GLIBC_${version} {${exports_${version}} };\n")
  endforeach()
  if(NOT script)
    set(script "{ local: *; };\n")
  endif()
  file(WRITE ${stubs}/${soname}.s "${assembly}.quad 0\n")
  file(WRITE ${stubs}/${soname}.map "${script}")
  execute_process(
    COMMAND ${CMAKE_CXX_COMPILER} -shared -nostdlib -x assembler ${soname}.s -o ${soname}
      -Wl,-soname,${soname} -Wl,--version-script=${soname}.map
    WORKING_DIRECTORY ${stubs} OUTPUT_QUIET ERROR_QUIET)
endfunction()

function(longseq_stubs)
  set(loader ld-linux-x86-64.so.2)
  if(CMAKE_SYSTEM_PROCESSOR STREQUAL "aarch64")
    set(loader ld-linux-aarch64.so.1)
  endif()
  foreach(soname ${loader} libc.so.6 libm.so.6 libpthread.so.0 libdl.so.2 librt.so.1)
    longseq_stub(${soname})
    string(REGEX REPLACE "[.]so[.].*" ".so" linked ${soname})
    file(WRITE ${stubs}/${linked} "INPUT(\"${stubs}/${soname}\")\n")
  endforeach()
  longseq_compiler_file(libc_nonshared.a nonshared)
  file(WRITE ${stubs}/libc.so "INPUT(\"${stubs}/libc.so.6\" \"${nonshared}\" AS_NEEDED(\"${stubs}/${loader}\"))\n")
endfunction()

if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  # An old system keeps threads, dlopen and timers in libraries of their own, which must be named to be loaded there.
  set(options -L${stubs} -Wl,--push-state,--no-as-needed -lpthread -ldl -lrt -Wl,--pop-state)
  if(NOT EXISTS ${stubs}/check.so)
    longseq_stubs()
    file(WRITE ${stubs}/check.cc "#include <cmath>\n#include <thread>\n"
      "double check(double x) { std::thread([&] { x = std::exp(x); }).join(); return x; }\n")
    execute_process(
      COMMAND ${CMAKE_CXX_COMPILER} -std=c++20 -fPIC -shared -static-libstdc++ ${options} check.cc -o check.so
      WORKING_DIRECTORY ${stubs} OUTPUT_QUIET ERROR_QUIET)
  endif()
  if(EXISTS ${stubs}/check.so)
    set(LONGSEQ_GLIBC_OPTIONS ${options})
    message(STATUS "longseq: glibc: ${LONGSEQ_GLIBC} or later")
  else()
    message(STATUS "longseq: glibc: not older than this system's (no stubs could be made of its libraries)")
  endif()
endif()
