#pragma once

// Sections, paragraphs and lists of a report.

#include <string>

#include "planner/report/terminal.hpp"

namespace shardwright {

/// `body` under a title, with an empty line before it; nothing at all when the body is empty.
std::string section(const OutputStyle& style, const std::string& title, const std::string& body);

/// Text wrapped to the width, ended by a newline.
std::string paragraph(const OutputStyle& style, const std::string& text);

/// "  - text", wrapped with the continuation under the text.
std::string bullet(const OutputStyle& style, const std::string& text);

} // namespace shardwright
