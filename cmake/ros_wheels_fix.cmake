# Given to CMake by `make build` (CMAKE_PROJECT_INCLUDE), since ROS 2 comes from PyPI wheels there.
#
# The wheels' <package>__rosidl_generator_py targets export the Python include directory of the machine that built them
# (/opt/python/cp311-cp311/include), and CMake stops at "Imported target includes non-existent path". At the end of the
# top-level CMakeLists.txt, drop from these targets the directories that do not exist here. Where ROS 2 is properly installed
# there is nothing to drop.
cmake_policy(PUSH)
cmake_policy(VERSION 3.19)  # cmake_language(DEFER)

function(drop_missing_python_includes)
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    if(NOT target MATCHES "__rosidl_generator_py$")
      continue()
    endif()
    get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
    set(existing)
    foreach(directory IN LISTS directories)
      if(IS_DIRECTORY "${directory}")
        list(APPEND existing "${directory}")
      endif()
    endforeach()
    set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${existing}")
  endforeach()
endfunction()

cmake_language(DEFER CALL drop_missing_python_includes)
cmake_policy(POP)
