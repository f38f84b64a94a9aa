# find_package(tcompile_runtime): the header, with every runtime that is found.
#
#   tcompile::runtime      tcompile_runtime.hpp, nlohmann's JSON, the runtimes
#   tcompile::image_file   image_file.hpp, with stb_image where it is found
#
# COMPONENTS openvino onnxruntime tensorrt tensorrt-rtx: these, each of which must be there; by
# default all that are found, at least one. Where they are looked for:
#   openvino       OpenVINO_DIR, or the package of the Python that is found
#   onnxruntime    ONNXRUNTIME_ROOT, with include/ and lib/, or the usual places
#   tensorrt       TENSORRT_ROOT, or the usual places; and CUDA's toolkit
#   tensorrt-rtx   TENSORRT_RTX_ROOT, and the toolkit; TENSORRT_RTX_LIBRARY names the library where
#                  it lies elsewhere. Not beside tensorrt: both have the same symbols.
include(CMakeFindDependencyMacro)
find_dependency(nlohmann_json)

set(_tcompile_asked ${tcompile_runtime_FIND_COMPONENTS})
set(_tcompile_found)
set(_tcompile_missing)

# TRUE where a runtime is to be looked for: it is asked for, or none is.
function(_tcompile_wanted name result)
  if(NOT _tcompile_asked OR name IN_LIST _tcompile_asked)
    set(${result} TRUE PARENT_SCOPE)
  else()
    set(${result} FALSE PARENT_SCOPE)
  endif()
endfunction()

# The folders named by a variable, of CMake or of the environment.
function(_tcompile_roots name result)
  set(${result} ${${name}} $ENV{${name}} PARENT_SCOPE)
endfunction()

# Headers and library of a runtime as an imported target.
function(_tcompile_runtime name definition include)
  if(NOT TARGET tcompile::${name})
    add_library(tcompile::${name} INTERFACE IMPORTED)
    target_include_directories(tcompile::${name} SYSTEM INTERFACE ${include})
    target_compile_definitions(tcompile::${name} INTERFACE ${definition})
    target_link_libraries(tcompile::${name} INTERFACE ${ARGN})
  endif()
endfunction()

_tcompile_wanted(openvino _wanted)
if(_wanted)
  find_package(OpenVINO QUIET COMPONENTS Runtime)
  if(NOT OpenVINO_FOUND)
    find_package(Python3 QUIET COMPONENTS Interpreter)
    if(Python3_Interpreter_FOUND)
      execute_process(
        COMMAND "${Python3_EXECUTABLE}" -c
          "from openvino.utils import get_cmake_path; print(get_cmake_path())"
        OUTPUT_VARIABLE _wheel ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
      if(_wheel)
        find_package(OpenVINO QUIET COMPONENTS Runtime PATHS "${_wheel}" NO_DEFAULT_PATH)
      endif()
    endif()
  endif()
  if(OpenVINO_FOUND)
    if(NOT TARGET tcompile::openvino)
      add_library(tcompile::openvino INTERFACE IMPORTED)
      target_compile_definitions(tcompile::openvino INTERFACE TCOMPILE_WITH_OPENVINO)
      target_link_libraries(tcompile::openvino INTERFACE openvino::runtime)
    endif()
    list(APPEND _tcompile_found openvino)
  else()
    list(APPEND _tcompile_missing "openvino: pip install openvino, or set OpenVINO_DIR")
  endif()
endif()

_tcompile_wanted(onnxruntime _wanted)
if(_wanted)
  _tcompile_roots(ONNXRUNTIME_ROOT _roots)
  find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h HINTS ${_roots}
    PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session)
  find_library(ONNXRUNTIME_LIBRARY onnxruntime HINTS ${_roots} PATH_SUFFIXES lib lib64)
  if(ONNXRUNTIME_INCLUDE_DIR AND ONNXRUNTIME_LIBRARY)
    _tcompile_runtime(onnxruntime TCOMPILE_WITH_ONNXRUNTIME
      "${ONNXRUNTIME_INCLUDE_DIR}" "${ONNXRUNTIME_LIBRARY}")
    list(APPEND _tcompile_found onnxruntime)
  else()
    list(APPEND _tcompile_missing "onnxruntime: set ONNXRUNTIME_ROOT, with include/ and lib/")
  endif()
endif()

_tcompile_wanted(tensorrt-rtx _wanted)
_tcompile_roots(TENSORRT_RTX_ROOT _roots)
if(_wanted AND (_roots OR _tcompile_asked))
  find_package(CUDAToolkit QUIET)
  find_path(TENSORRT_RTX_INCLUDE_DIR NvInferRuntime.h HINTS ${_roots} PATH_SUFFIXES include)
  find_library(TENSORRT_RTX_LIBRARY NAMES tensorrt_rtx libtensorrt_rtx.so.1 HINTS ${_roots}
    PATH_SUFFIXES lib lib64 .)
  if(TENSORRT_RTX_INCLUDE_DIR AND TENSORRT_RTX_LIBRARY AND CUDAToolkit_FOUND)
    _tcompile_runtime(tensorrt-rtx TCOMPILE_WITH_TENSORRT_RTX
      "${TENSORRT_RTX_INCLUDE_DIR}" "${TENSORRT_RTX_LIBRARY}" CUDA::cudart_static)
    list(APPEND _tcompile_found tensorrt-rtx)
  else()
    list(APPEND _tcompile_missing
      "tensorrt-rtx: set TENSORRT_RTX_ROOT, with include/ and lib/; it takes CUDA's toolkit")
  endif()
endif()

_tcompile_wanted(tensorrt _wanted)
if(_wanted AND NOT "tensorrt-rtx" IN_LIST _tcompile_found)
  _tcompile_roots(TENSORRT_ROOT _roots)
  find_package(CUDAToolkit QUIET)
  find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h HINTS ${_roots}
    PATH_SUFFIXES include "include/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu"
      targets/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu/include)
  find_library(TENSORRT_LIBRARY nvinfer HINTS ${_roots}
    PATH_SUFFIXES lib lib64 targets/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu/lib)
  if(TENSORRT_INCLUDE_DIR AND TENSORRT_LIBRARY AND CUDAToolkit_FOUND)
    _tcompile_runtime(tensorrt TCOMPILE_WITH_TENSORRT
      "${TENSORRT_INCLUDE_DIR}" "${TENSORRT_LIBRARY}" CUDA::cudart_static)
    list(APPEND _tcompile_found tensorrt)
  else()
    list(APPEND _tcompile_missing
      "tensorrt: set TENSORRT_ROOT, with include/ and lib/; it takes CUDA's toolkit")
  endif()
endif()

set(_tcompile_reason)
foreach(_name IN LISTS _tcompile_asked)
  if(NOT _name IN_LIST _tcompile_found)
    set(_tcompile_reason "${_name} is not found")
  endif()
endforeach()
if(NOT _tcompile_found)
  set(_tcompile_reason "no runtime is found")
endif()
if(_tcompile_reason)
  list(JOIN _tcompile_missing "\n  " _lines)
  set(tcompile_runtime_FOUND FALSE)
  set(tcompile_runtime_NOT_FOUND_MESSAGE "${_tcompile_reason}\n  ${_lines}")
  return()
endif()

if(NOT TARGET tcompile::runtime)
  add_library(tcompile::runtime INTERFACE IMPORTED)
  target_compile_features(tcompile::runtime INTERFACE cxx_std_17)
  target_include_directories(tcompile::runtime INTERFACE "${CMAKE_CURRENT_LIST_DIR}")
  list(TRANSFORM _tcompile_found PREPEND "tcompile::" OUTPUT_VARIABLE _targets)
  target_link_libraries(tcompile::runtime INTERFACE nlohmann_json::nlohmann_json ${_targets})
  add_library(tcompile::image_file INTERFACE IMPORTED)
  find_path(TCOMPILE_STB_INCLUDE_DIR stb_image.h PATH_SUFFIXES stb)
  if(TCOMPILE_STB_INCLUDE_DIR)
    target_include_directories(tcompile::image_file SYSTEM INTERFACE "${TCOMPILE_STB_INCLUDE_DIR}")
    target_compile_definitions(tcompile::image_file INTERFACE TCOMPILE_WITH_STB)
  endif()
endif()
list(JOIN _tcompile_found ", " _shown)
message(STATUS "tcompile_runtime: ${_shown}")
