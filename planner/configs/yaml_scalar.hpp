#pragma once

#include <string>

#include "core/json.hpp"

namespace shardwright {

/// What PyYAML's safe_load makes of an unquoted scalar: null, true/false (also yes/no/on/off), an integer, a float
/// (only with a point), else the text. Sexagesimal numbers and dates stay texts.
Json yamlScalar(const std::string& text);

} // namespace shardwright
