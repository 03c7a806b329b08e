#include <memory>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "core/scenario_file.hpp"
#include "planner/cli/commands.hpp"
#include "planner/cli/output.hpp"
#include "planner/cli/rows.hpp"
#include "planner/report/result_json.hpp"

namespace shardwright::cli {

namespace {

constexpr const char* kHelp = R"(Examples:
  shardplan strategies
  shardplan strategies deepspeed-zero3-offload-cpu

One strategy is shown spelled out, as the "strategies" list of a scenario takes it: change its values, give it a name of
its own, and put it there to compare any other combination.)";

constexpr int kExampleGpusPerNode = 8;

struct Options {
    std::string strategy;
    OutputOptions output;
};

/// What is sharded over which ranks and what is offloaded, by framework.
struct Describe {
    std::string operator()(const DdpOptions&) const
    {
        return "everything on every GPU; gradients all-reduced in buckets";
    }

    std::string operator()(const Fsdp1Options& options) const
    {
        std::string text(nameOf(options.sharding));
        text += ": ";
        switch (options.sharding) {
        case ShardingStrategy::FullShard: text += "parameters, gradients and optimizer over all GPUs"; break;
        case ShardingStrategy::ShardGradOp:
            text += "gradients and optimizer over all GPUs; parameters gathered once a step";
            break;
        case ShardingStrategy::NoShard: text += "everything on every GPU"; break;
        case ShardingStrategy::HybridShard: text += "as FULL_SHARD within each node, nodes are replicas"; break;
        case ShardingStrategy::HybridShardZero2: text += "as SHARD_GRAD_OP within each node, nodes are replicas"; break;
        }
        return text + (options.offloadParams ? "; all of it on the host" : "");
    }

    std::string operator()(const Fsdp2Options& options) const
    {
        if (options.noShard)
            return "everything on every GPU";
        std::string text = options.reshardAfterForward ? "parameters, gradients and optimizer"
                                                       : "gradients and optimizer, parameters gathered once a step,";
        text += options.replicate == 1 ? " over all GPUs" : " within each node, nodes are replicas";
        return text + (options.offloadParams ? "; all of it on the host" : "");
    }

    std::string operator()(const DeepSpeedOptions& options) const
    {
        static const char* const kSharded[] = {"everything on every GPU", "optimizer over all GPUs",
                                               "optimizer and gradients over all GPUs",
                                               "optimizer, gradients and parameters over all GPUs"};
        std::string text = kSharded[options.stage];
        if (options.micsShardSize > 0)
            text = "optimizer, gradients and parameters within each node, nodes are replicas";
        if (options.quantizedWeights || options.quantizedGradients)
            text += "; weights and gradients travel in 8 and 4 bits";
        if (options.hpzPartitionSize > 1)
            text += "; a second copy of the parameters within each node";
        if (options.offloadParam != OffloadDevice::None)
            text += fmt::format("; optimizer on {}, parameters on {}", nameOf(options.offloadOptimizer),
                                nameOf(options.offloadParam));
        else if (options.offloadOptimizer != OffloadDevice::None)
            text += fmt::format("; optimizer on {}", nameOf(options.offloadOptimizer));
        return text;
    }

    std::string operator()(const NativeOptions& options) const
    {
        return fmt::format("the textbook schedule of ZeRO stage {}, without any framework's buffers", options.stage);
    }

    std::string operator()(const MegatronOptions& options) const
    {
        return options.distributedOptimizer ? "model parallelism; optimizer states over the data-parallel group"
                                            : "model parallelism; every data-parallel rank steps everything";
    }
};

Strategy named(const std::string& name)
{
    auto strategy = strategyByName(name, kExampleGpusPerNode);
    if (strategy)
        return std::move(*strategy);
    const std::string nearest = nearestWord(name, strategyNames());
    throw InputError("command line", name, "is not a strategy",
                     nearest.empty() ? fmt::format("one of {}", fmt::join(strategyNames(), ", "))
                                     : fmt::format("\"{}\" perhaps", nearest));
}

ExitCode strategies(const Options& options)
{
    if (!options.strategy.empty()) {
        const Strategy strategy = named(options.strategy);
        const std::string spelledOut = jsonText(toJson(strategy)) + '\n';
        const std::string what = std::visit(Describe{}, strategy.options);
        options.output.write(
            options.output.format() == Format::Json
                ? spelledOut
                : fmt::format("{} ({}): {}\n\nSpelled out for a scenario{}:\n{}", strategy.name, frameworkOf(strategy),
                              what, " (group sizes for nodes of " + std::to_string(kExampleGpusPerNode) + " GPUs)",
                              spelledOut));
        return ExitCode::Done;
    }
    std::vector<Json> rows;
    for (const std::string& name : strategyNames()) {
        const Strategy strategy = named(name);
        rows.push_back({{"strategy", name},
                        {"framework", frameworkOf(strategy)},
                        {"what", std::visit(Describe{}, strategy.options)}});
    }
    writeRows(rows, options.output);
    return ExitCode::Done;
}

} // namespace

Command addStrategies(CLI::App& root, Findings& findings)
{
    auto options = std::make_shared<Options>();
    CLI::App* app = root.add_subcommand("strategies", "The strategies that have a name, and one spelled out");
    app->footer(kHelp);
    app->add_option("strategy", options->strategy, "show this one spelled out")->type_name("NAME");
    options->output.add(*app, findings, Formats::TextJsonCsv);
    return {app, [options] { return strategies(*options); }};
}

} // namespace shardwright::cli
