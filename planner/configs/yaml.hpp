#pragma once

// YAML as PyYAML's safe_load reads it (YAML 1.1 scalars: `no` is false, `1e8` is a text), into Json.

#include <map>
#include <string>

#include "core/json_cursor.hpp"

namespace shardwright {

struct YamlDocument {
    Json json;
    std::map<std::string, std::string> places; // JSON pointer -> "line 3, column 5"
};

/// Parses one document. Syntax errors, duplicate keys, aliases, tags, merge keys, more than one document, deep nesting
/// or more than 1 MiB throw InputError with line and column.
YamlDocument parseYaml(const std::string& text, const std::string& file);

/// The error with the JSON pointers of its findings about `file` replaced by line, column and the dotted setting.
InputError withYamlPlaces(const InputError& error, const std::string& file, const YamlDocument& document);

/// Block style, keys in the order of `object`; texts are quoted wherever PyYAML would read them as something else.
std::string writeYaml(const Json& object);

} // namespace shardwright
