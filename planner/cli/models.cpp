#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/catalogue.hpp"
#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "planner/cli/commands.hpp"
#include "planner/cli/output.hpp"
#include "planner/cli/rows.hpp"
#include "planner/report/number_format.hpp"
#include "planner/report/result_json.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kHelp = R"(Examples:
  shardplan models
  shardplan models llama-2-7b
  shardplan models models/mixtral-8x7b/config.json --format json
  shardplan models --parameters gpt2 --format csv

Any Hugging Face config.json of a known model_type works wherever an id does.)";

struct Options {
    std::string model;
    bool parameters = false;
    OutputOptions output;
};

Json summary(const Model& model)
{
    const Architecture& shape = model.architecture;
    return {{"id", model.id},
            {"model_type", shape.modelType},
            {"parameters", model.parameters()},
            {"active_parameters", model.activeParameters()},
            {"layers", shape.layers},
            {"hidden_size", shape.hidden},
            {"heads", shape.heads},
            {"kv_heads", shape.kvHeads},
            {"ffn_size", shape.ffn},
            {"experts", shape.experts},
            {"vocabulary", shape.vocab},
            {"max_positions", shape.maxPositions}};
}

void listParametersOf(const Model& model, const OutputOptions& output)
{
    std::vector<Json> rows;
    for (const NamedParameter& parameter : listParameters(model))
        rows.push_back({{"name", parameter.name},
                        {"shape", fmt::format("{}", fmt::join(parameter.shape, "x"))},
                        {"elements", parameter.numel}});
    writeRows(rows, output);
}

std::vector<Json> layerRows(const Model& model)
{
    std::vector<Json> rows;
    for (std::size_t type = 0; type < model.layerTypes.size(); ++type) {
        const LayerType& layer = model.layerTypes[type];
        const std::int64_t count = model.layersOfType(static_cast<int>(type));
        rows.push_back({{"layer", layer.prefix},
                        {"class", layer.className},
                        {"count", count},
                        {"tensors", layer.tensors()},
                        {"elements_each", layer.numel()},
                        {"elements", checkedMultiply(layer.numel(), count)}});
    }
    return rows;
}

void describe(const Model& model, const OutputOptions& output)
{
    if (output.format() == Format::Json) {
        Json json = summary(model);
        json["source"] = model.source;
        json["largest_tensor"] = model.largestTensor();
        json["layers_by_type"] = layerRows(model);
        output.write(jsonText(json) + '\n');
        return;
    }
    std::string head = fmt::format("{} ({})\n{} parameters", model.id, model.source, grouped(model.parameters()));
    if (model.activeParameters() != model.parameters())
        head += fmt::format(", {} of them met by one token", grouped(model.activeParameters()));
    const Architecture& shape = model.architecture;
    head += fmt::format("; largest tensor {}\n{}: {} blocks, hidden {}, {} heads, {} key/value heads, feed-forward {}, "
                        "vocabulary {}, {} positions\n",
                        grouped(model.largestTensor()), shape.modelType, shape.layers, shape.hidden, shape.heads,
                        shape.kvHeads, shape.ffn, shape.vocab, shape.maxPositions);
    if (shape.experts > 0)
        head += fmt::format("{} experts of width {}, {} per token\n", shape.experts, shape.expertFfn,
                            shape.expertsPerToken);
    writeRows(layerRows(model), output, head + '\n');
}

ExitCode models(const Options& options)
{
    if (!options.model.empty()) {
        const Model model = readModel(options.model);
        if (options.parameters)
            listParametersOf(model, options.output);
        else
            describe(model, options.output);
        return ExitCode::Done;
    }
    if (options.parameters)
        throw InputError("command line", "--parameters", "without a model", "an id or a path after it");
    std::vector<Json> rows;
    for (const std::string& id : modelIds())
        rows.push_back(summary(readModel(id)));
    if (rows.empty())
        throw EnvironmentError("no models ship in " + homeFolder() + "/models");
    writeRows(rows, options.output);
    return ExitCode::Done;
}

} // namespace

Command addModels(CLI::App& root, Findings& findings)
{
    auto options = std::make_shared<Options>();
    CLI::App* app = root.add_subcommand("models", "The models that ship, or one of them, parameter by parameter");
    app->footer(kHelp);
    app->add_option("model", options->model, "show this one: an id, a config.json or its folder")->type_name("ID|PATH");
    app->add_flag("--parameters", options->parameters, "list every parameter with its shape");
    options->output.add(*app, findings, Formats::TextJsonCsv);
    return {app, [options] { return models(*options); }};
}

} // namespace shardwright::cli
