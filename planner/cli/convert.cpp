#include <algorithm>
#include <iterator>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "planner/cli/commands.hpp"
#include "planner/cli/config_output.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kHelp = R"(Examples:
  shardplan convert ds_config.json --to accelerate-fsdp2 --model llama-2-7b
  shardplan convert fsdp.yaml --to deepspeed --model llama-2-7b -o run
  shardplan convert ds_config.json --to accelerate-deepspeed

The report names what is kept, what is translated and where that is not equal, and what has no equivalent. Without -o
the files go to standard output and the report to standard error. --model is needed where a setting depends on the
model: the blocks that FSDP wraps, sizes that are "auto".)";

struct Options {
    std::string file;
    std::string to;
    std::string model;
    std::string script = "train.py";
    std::int64_t gpus = 0;
    OutputOptions output;
};

using Items = std::vector<ConversionItem>;

std::string section(const char* title, const Items& items)
{
    std::string text = items.empty() ? std::string() : fmt::format("{}\n", title);
    for (std::size_t i = 0; i < items.size();) {
        std::vector<std::string> settings;
        const std::string& same = items[i].text;
        for (; i < items.size() && items[i].text == same; ++i)
            settings.push_back(items[i].setting);
        text += fmt::format("  {}: {}\n", fmt::join(settings, ", "), same);
    }
    return text;
}

Json itemsToJson(const Items& items)
{
    Json json = Json::array();
    for (const ConversionItem& item : items)
        json.push_back({{"setting", item.setting}, {"text", item.text}});
    return json;
}

/// The notes of reading and of writing without those that say a thing a second time: what is kept stands in the
/// report, and what is "auto" in both files is told once.
std::vector<ConfigNote> notToldYet(const std::vector<ConfigNote>& reading, const std::vector<ConfigNote>& writing)
{
    std::vector<ConfigNote> notes;
    const auto told = [&](const ConfigNote& note) {
        return std::any_of(notes.begin(), notes.end(), [&](const ConfigNote& other) {
            return note.kind == NoteKind::Automatic && other.kind == note.kind && other.setting == note.setting;
        });
    };
    std::copy_if(reading.begin(), reading.end(), std::back_inserter(notes),
                 [](const ConfigNote& note) { return note.kind != NoteKind::Kept; });
    for (const ConfigNote& note : writing)
        if (!told(note))
            notes.push_back(note);
    return notes;
}

ExitCode convert(const Options& options)
{
    std::optional<Model> model;
    if (!options.model.empty())
        model = readModel(options.model);
    ImportContext context;
    if (model)
        context.hiddenSize = model->architecture.hidden;
    if (options.gpus > 0)
        context.world = options.gpus;
    const ImportedConfig source = importConfig(readTextFile(options.file), options.file, context);
    const Conversion conversion = convertConfig(source, configFormat(options.to, source.run.strategy.options), model,
                                                {options.output.path(), options.script});
    const std::string report = fmt::format("launch: {}\n", conversion.result.launchCommand) +
                               section("kept", conversion.kept) + section("translated", conversion.translated) +
                               section("has no equivalent", conversion.noEquivalent) +
                               noteLines(notToldYet(source.notes, conversion.result.notes));
    deliver(conversion.result, report,
            {{"kept", itemsToJson(conversion.kept)},
             {"translated", itemsToJson(conversion.translated)},
             {"no_equivalent", itemsToJson(conversion.noEquivalent)},
             {"import_notes", toJson(source.notes)}},
            options.output);
    return ExitCode::Done;
}

} // namespace

Command addConvert(CLI::App& root, Findings& findings)
{
    auto options = std::make_shared<Options>();
    CLI::App* app = root.add_subcommand("convert", "A config file rewritten for another framework or launcher");
    app->footer(kHelp + formatHelp());
    app->add_option("file", options->file, "ds_config.json, or an Accelerate YAML")->type_name("FILE")->required();
    addFormatOption(*app, options->to);
    app->add_option("--model", options->model, "model that ships, or a Hugging Face config.json or its folder")
        ->type_name("ID|PATH");
    app->add_option("--gpus", options->gpus, "GPUs of the run, where the file does not say and needs them")
        ->type_name("N");
    app->add_option("--script", options->script, "your training script, for the launch command")->type_name("FILE");
    options->output.add(*app, findings, Formats::TextJson, OutputOptions::Target::Folder);
    return {app, [options] { return convert(*options); }};
}

} // namespace shardwright::cli
