#include <charconv>
#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/cli/streams.hpp"
#include "core/cluster_file.hpp"
#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "core/scenario_file.hpp"
#include "planner/cli/commands.hpp"
#include "planner/cli/config_output.hpp"
#include "planner/cli/scenario_options.hpp"
#include "planner/report/result_json.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kHelp = R"(Examples:
  shardplan import ds_config.json --model llama-2-7b --cluster dgx-a100-80gb
  shardplan import fsdp.yaml --model llama-3-8b --cluster dgx-h100 --nodes 2 -o mine.json
  shardplan import ds_config.json --model models/llama-2-7b --cluster dgx-a100-80gb --sequence-length 2048

Prints a scenario that `shardplan compare` and `explain` take. To standard error goes what the file says that has no
effect on a plan, what fills its "auto", and what is taken for settings that it does not have, with the flag of each. A
flag replaces what the file says.)";

struct Options {
    std::string file;
    ScenarioOptions question;
    OutputOptions output;
};

/// The flag's number into `target`; what is no such number is reported with the other flags later.
void sizeFrom(const std::optional<std::string>& text, int most, int& target)
{
    int number = 0;
    if (text && std::from_chars(text->data(), text->data() + text->size(), number).ec == std::errc() && number >= 1 &&
        number <= most)
        target = number;
}

Cluster sized(Cluster cluster, const ScenarioOptions& question)
{
    sizeFrom(question.value("--nodes"), kMostNodes, cluster.nodes);
    sizeFrom(question.value("--gpus-per-node"), kMostGpusPerNode, cluster.gpusPerNode);
    return cluster;
}

/// What neither the file nor a flag says and a plan needs, with the flag that says it.
ConfigNote takenHere(const TrainingSettings& said, const ScenarioOptions& question, const Training& training)
{
    std::vector<std::string> taken;
    const auto add = [&](bool inFile, const char* flag, const std::string& what) {
        if (!inFile && !question.value(flag))
            taken.push_back(fmt::format("{} ({})", what, flag));
    };
    add(false, "--sequence-length", fmt::format("sequence {}", training.sequenceLength));
    add(said.microBatch.has_value(), "--micro-batch", fmt::format("micro-batch {}", training.microBatch));
    add(said.gradientAccumulation.has_value(), "--gradient-accumulation",
        fmt::format("gradient accumulation {}", training.gradientAccumulation));
    add(said.mixedPrecision.has_value(), "--precision",
        fmt::format("{} mixed precision", nameOf(mixedPrecisionMode(training.precision))));
    add(false, "--load-dtype", fmt::format("weights loaded in {}", nameOf(training.precision.load)));
    add(said.optimizer.has_value(), "--optimizer", fmt::format("optimizer {}", nameOf(training.optimizer)));
    add(said.checkpointing.has_value(), "--activation-checkpointing",
        fmt::format("activation checkpointing {}", nameOf(training.checkpointing)));
    add(false, "--attention", fmt::format("{} attention", nameOf(training.attention)));
    return {NoteKind::Information, "/training",
            fmt::format("not in the file, so taken here: {}", fmt::join(taken, ", "))};
}

ExitCode importConfigFile(const Options& options)
{
    Findings missing("command line");
    for (const char* option : {"--model", "--cluster"})
        if (!options.question.value(option))
            missing.add(option, "is missing", "the model and the cluster that the file is for");
    missing.throwIfAny();
    const Model model = readModel(*options.question.value("--model"));
    const Cluster cluster = sized(readCluster(*options.question.value("--cluster")), options.question);
    ImportContext context;
    context.hiddenSize = model.architecture.hidden;
    context.world = cluster.gpus();
    ImportedConfig config = importConfig(readTextFile(options.file), options.file, context);
    const Scenario scenario = options.question.readOver(toJson(scenarioOf(config, model, cluster)), options.file);
    config.notes.push_back(takenHere(config.run.training, options.question, scenario.training));
    const Json json = toJson(scenario);
    if (options.output.format() == Format::Json) {
        options.output.write(jsonText({{"scenario", json}, {"notes", toJson(config.notes)}}) + '\n');
        return ExitCode::Done;
    }
    options.output.write(jsonText(json) + '\n');
    printErr(noteLines(config.notes));
    return ExitCode::Done;
}

} // namespace

Command addImport(CLI::App& root, Findings& findings)
{
    auto options = std::make_shared<Options>();
    CLI::App* app = root.add_subcommand("import", "A scenario from the config file that somebody has already");
    app->footer(kHelp);
    app->add_option("file", options->file, "ds_config.json, or an Accelerate YAML")->type_name("FILE")->required();
    options->question.add(*app, ScenarioOptions::Strategies::One, ScenarioOptions::Source::Elsewhere);
    options->output.add(*app, findings, Formats::TextJson);
    return {app, [options] { return importConfigFile(*options); }};
}

} // namespace shardwright::cli
