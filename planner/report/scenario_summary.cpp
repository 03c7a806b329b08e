#include "planner/report/scenario_summary.hpp"

#include <fmt/format.h>

#include "core/plain_text.hpp"
#include "planner/report/number_format.hpp"
#include "planner/report/text_width.hpp"

namespace shardwright {

namespace {

std::string modelSummary(const Model& model)
{
    const std::int64_t parameters = model.parameters();
    const std::int64_t trainable = model.trainableParameters();
    std::string text = fmt::format("{}, {} parameters", model.id, spokenCount(parameters));
    if (trainable != parameters)
        text += fmt::format(", of these {} trainable", spokenCount(trainable));
    return text;
}

std::string clusterSummary(const Cluster& cluster)
{
    const Bytes memory(static_cast<std::int64_t>(cluster.gpu.memory.value));
    std::string text =
        fmt::format("{}, {} {} x {} {}, {} GiB each", cluster.id, grouped(cluster.nodes),
                    cluster.nodes == 1 ? "node" : "nodes", cluster.gpusPerNode, cluster.gpu.name, gibibytes(memory));
    if (cluster.gpusPerNode > 1)
        text += fmt::format("; {} in a node", nameOf(cluster.intraNode.kind));
    if (cluster.nodes > 1)
        text += fmt::format("; {} between nodes", nameOf(cluster.interNode.kind));
    return text;
}

} // namespace

std::string trainingSummary(const Training& training)
{
    std::string text = fmt::format("sequence {}, micro-batch {}", training.sequenceLength, training.microBatch);
    if (training.gradientAccumulation > 1)
        text += fmt::format(", accumulation {}", training.gradientAccumulation);
    if (training.precision.mixed)
        text += fmt::format(", {} mixed over {} weights", nameOf(*training.precision.mixed),
                            nameOf(training.precision.load));
    else
        text += fmt::format(", {} throughout", nameOf(training.precision.load));
    if (training.precision.fp8)
        text += fmt::format(", fp8 linear layers ({})", nameOf(training.precision.fp8Scaling));
    text += fmt::format(", {}, activation checkpointing {}, {} attention, {} code", nameOf(training.optimizer),
                        nameOf(training.checkpointing), nameOf(training.attention), nameOf(training.implementation));
    if (training.compile)
        text += ", compiled";
    if (training.lora)
        text += fmt::format(", LoRA rank {}", training.lora->rank);
    return text;
}

std::string provenanceText(Provenance tag, const std::string& source)
{
    std::string text(nameOf(tag));
    if (!source.empty())
        text += ": " + source;
    return text;
}

std::string scenarioSummary(const Scenario& scenario, const OutputStyle& style)
{
    std::string text = paint(style, Ink::Strong, withoutControls(scenario.name)) + '\n';
    for (const std::string& line : wrapWords(withoutControls(scenario.question), style.width))
        text += line + '\n';
    const auto add = [&](const char* what, const std::string& value) {
        constexpr int kLabelWidth = 10;
        const int room = style.width > 0 ? std::max(20, style.width - kLabelWidth) : 0;
        std::string label = padRight(what, kLabelWidth);
        for (const std::string& line : wrapWords(withoutControls(value), room)) {
            text += paint(style, Ink::Faint, label) + line + '\n';
            label = std::string(kLabelWidth, ' ');
        }
    };
    add("model", modelSummary(scenario.model));
    add("cluster", clusterSummary(scenario.cluster));
    add("training", trainingSummary(scenario.training));
    return text;
}

} // namespace shardwright
