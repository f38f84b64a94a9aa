# TensorRT's headers, and its library where there is one.
#
# Looks into TENSORRT_ROOT (variable or environment), then where Debian packages and JetPack put
# them. Gives TensorRT_VERSION, TensorRT_INCLUDE_DIR, the target TensorRT::headers and, where the
# library was found, TensorRT::nvinfer. Plugins need the headers only.
set(_roots)
foreach(_root IN ITEMS "${TENSORRT_ROOT}" "$ENV{TENSORRT_ROOT}")
  if(_root)
    list(APPEND _roots "${_root}")
  endif()
endforeach()
set(_only)
if(_roots)
  # Whoever names a place does not want another TensorRT.
  set(_only NO_DEFAULT_PATH)
endif()

find_path(TensorRT_INCLUDE_DIR NvInferVersion.h HINTS ${_roots}
  PATHS /usr /usr/local/tensorrt /opt/tensorrt /usr/src/tensorrt
  PATH_SUFFIXES include "include/${CMAKE_LIBRARY_ARCHITECTURE}"
    "include/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu" targets/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu/include
  ${_only})
find_library(TensorRT_LIBRARY nvinfer HINTS ${_roots}
  PATHS /usr /usr/local/tensorrt /opt/tensorrt
  PATH_SUFFIXES lib lib64 "lib/${CMAKE_LIBRARY_ARCHITECTURE}"
    "lib/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu" targets/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu/lib
  ${_only})

if(TensorRT_INCLUDE_DIR)
  file(STRINGS "${TensorRT_INCLUDE_DIR}/NvInferVersion.h" _lines REGEX "#define (NV_TENSORRT|TRT)_")
  set(_numbers)
  foreach(_part IN ITEMS MAJOR MINOR PATCH)
    # From 10.11 or so NV_TENSORRT_MAJOR is defined by TRT_MAJOR_ENTERPRISE.
    string(REGEX MATCH "(NV_TENSORRT_${_part}|TRT_${_part}_ENTERPRISE) +([0-9]+)" _ "${_lines}")
    list(APPEND _numbers "${CMAKE_MATCH_2}")
  endforeach()
  list(JOIN _numbers "." TensorRT_VERSION)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRT REQUIRED_VARS TensorRT_INCLUDE_DIR
  VERSION_VAR TensorRT_VERSION
  REASON_FAILURE_MESSAGE "give the folder that has include/NvInfer.h as -DTENSORRT_ROOT=...")

if(TensorRT_FOUND AND NOT TARGET TensorRT::headers)
  add_library(TensorRT::headers INTERFACE IMPORTED)
  target_include_directories(TensorRT::headers SYSTEM INTERFACE "${TensorRT_INCLUDE_DIR}")
endif()
if(TensorRT_FOUND AND TensorRT_LIBRARY AND NOT TARGET TensorRT::nvinfer)
  add_library(TensorRT::nvinfer UNKNOWN IMPORTED)
  set_target_properties(TensorRT::nvinfer PROPERTIES IMPORTED_LOCATION "${TensorRT_LIBRARY}")
  target_link_libraries(TensorRT::nvinfer INTERFACE TensorRT::headers)
endif()
mark_as_advanced(TensorRT_INCLUDE_DIR TensorRT_LIBRARY)
