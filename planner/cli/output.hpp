#pragma once

// Where a command's answer goes: standard output, or a file that is written whole or not at all.

#include <string>
#include <string_view>
#include <vector>

#include "core/diagnostics.hpp"
#include "core/enum_names.hpp"
#include "planner/report/terminal.hpp"

namespace CLI {
class App;
}

namespace shardwright::cli {

enum class Format : std::uint8_t { Text, Json, Csv };

/// Writes `text` beside `path` and renames, so that a reader sees the old file or the whole new one. InputError when
/// the file exists and `replace` is false, EnvironmentError when it cannot be written.
void writeWhole(const std::string& path, std::string_view text, bool replace);

/// InputError naming every one of `paths` that exists, unless `replace`.
void refuseExisting(const std::vector<std::string>& paths, bool replace);

enum class Formats : std::uint8_t { TextJson, TextJsonCsv, Json }; // Json: nothing to choose

/// --format, --color, and -o with --force, as every command has them.
class OutputOptions {
public:
    enum class Target : std::uint8_t { File, Folder, StandardOutput };

    void add(CLI::App& app, Findings& findings, Formats formats, Target target = Target::File);

    Format format() const { return m_format; }
    bool force() const { return m_force; }
    const std::string& path() const { return m_path; } // of -o; empty: standard output

    /// How text is drawn there. A pipe or file gets ASCII without colour, whatever the locale.
    OutputStyle style() const;

    /// Writes the answer to the file of -o, else to standard output.
    void write(const std::string& text) const;

private:
    Format m_format = Format::Text;
    ColourChoice m_colour = ColourChoice::Auto;
    std::string m_path;
    bool m_force = false;
};

} // namespace shardwright::cli
