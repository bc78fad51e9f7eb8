#pragma once

#include <string>

#include "base/error.h"

namespace rwkvx::testing {

/// The message of the Error that `function` throws, empty when it throws none.
template <typename Function>
std::string error_of(Function function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace rwkvx::testing
