#include "planner/cli/config_output.hpp"

#include <filesystem>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/cli/streams.hpp"
#include "core/json_cursor.hpp"
#include "planner/report/result_json.hpp"
#include "planner/report/text_width.hpp"

namespace shardwright::cli {

namespace fs = std::filesystem;

namespace {

const char* spoken(NoteKind kind)
{
    switch (kind) {
    case NoteKind::Rewritten: return "rewritten";
    case NoteKind::Ignored: return "ignored by the framework";
    case NoteKind::Kept: return "kept";
    case NoteKind::Automatic: return "automatic";
    case NoteKind::InScript: return "set it in the training script";
    case NoteKind::NotSayable: return "cannot be said in this format";
    case NoteKind::Information: return "note";
    }
    return "note";
}

/// The paths that the files were written to.
std::vector<std::string> writeInto(const fs::path& folder, const std::vector<ConfigFile>& files, bool replace)
{
    std::vector<std::string> paths;
    for (const ConfigFile& file : files)
        paths.push_back((folder / file.name).string());
    refuseExisting(paths, replace);
    std::error_code error;
    fs::create_directories(folder, error);
    if (error)
        throw EnvironmentError(fmt::format("cannot make the folder {}: {}", folder.string(), error.message()));
    for (std::size_t i = 0; i < paths.size(); ++i)
        writeWhole(paths[i], files[i].text, replace);
    return paths;
}

std::string withNames(const std::vector<ConfigFile>& files)
{
    std::string text;
    for (const ConfigFile& file : files) {
        if (files.size() > 1)
            text += fmt::format("==> {} <==\n", file.name);
        text += file.text;
    }
    return text;
}

Json filesToJson(const std::vector<ConfigFile>& files)
{
    Json json = Json::array();
    for (const ConfigFile& file : files)
        json.push_back({{"name", file.name}, {"text", file.text}});
    return json;
}

} // namespace

void deliver(const ConfigExport& config, const std::string& beside, const Json& more, const OutputOptions& output)
{
    std::vector<std::string> written;
    if (!output.path().empty())
        written = writeInto(output.path(), config.files, output.force());
    if (output.format() == Format::Json) {
        Json json{{"format", nameOf(config.format)},
                  {"files", filesToJson(config.files)},
                  {"written", written},
                  {"launch_command", config.launchCommand},
                  {"notes", toJson(config.notes)}};
        json.update(more);
        printOut(jsonText(json) + '\n');
    } else if (output.path().empty()) {
        printOut(withNames(config.files));
        printErr('\n' + beside);
    } else {
        std::string text;
        for (const std::string& path : written)
            text += fmt::format("wrote {}\n", path);
        printOut(text + beside);
    }
}

std::string noteLines(const std::vector<ConfigNote>& notes)
{
    std::string text;
    for (const ConfigNote& note : notes)
        text += fmt::format("{}: {}: {}\n", spoken(note.kind), note.setting, note.text);
    return text;
}

Json toJson(const std::vector<ConfigNote>& notes)
{
    Json json = Json::array();
    for (const ConfigNote& note : notes)
        json.push_back({{"kind", nameOf(note.kind)}, {"setting", note.setting}, {"text", note.text}});
    return json;
}

void addFormatOption(CLI::App& app, std::string& word)
{
    app.add_option("--to", word, "format of the files, see below")->type_name("FORMAT")->required();
}

std::string formatHelp()
{
    constexpr int kWidth = 120;
    const std::string words = fmt::format("Formats: {}. `accelerate` and `accelerate-fsdp` follow the strategy.",
                                          fmt::join(configFormatWords(), ", "));
    return fmt::format("\n\n{}", fmt::join(wrapWords(words, kWidth), "\n"));
}

} // namespace shardwright::cli
