#pragma once

#include <string>

namespace rwkvx::cli {

/// The model of commands that are given none: what the environment variable RWKVX_MODEL names, else the model
/// that comes with the program, in share/rwkvx/ beside the folder the program is installed in, or in models/
/// of the source it was built from. Errors: RWKVX_MODEL names no file; no model is found (says where it was
/// looked for).
std::string default_model();

}  // namespace rwkvx::cli
