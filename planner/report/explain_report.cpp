#include "planner/report/explain_report.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "core/catalogue.hpp"
#include "core/plain_text.hpp"
#include "planner/report/compare_report.hpp"
#include "planner/report/number_format.hpp"
#include "planner/report/scenario_summary.hpp"
#include "planner/report/table.hpp"
#include "planner/report/text_layout.hpp"

namespace shardwright {

namespace {

std::string headline(const Plan& plan, const OutputStyle& style)
{
    const Cell verdict = verdictCell(plan.verdict);
    std::string text = paint(style, Ink::Strong, withoutControls(plan.strategy)) + ": " +
                       paint(style, verdict.ink, verdict.text) + '\n';
    if (plan.verdict != Verdict::NotPossible)
        text +=
            bullet(style, fmt::format("{} of {} GiB used on each GPU at the peak ({})", gibibytes(plan.gpu.peakUsed),
                                      gibibytes(plan.gpu.capacity), percentOf(plan.gpu.peakUsed, plan.gpu.capacity)));
    if (plan.step)
        text += bullet(style, fmt::format("{} a step, {} tokens/s of a GPU{}", spokenSeconds(plan.step->seconds),
                                          threeDigits(plan.step->tokensPerSecondPerGpu),
                                          plan.step->mfu > 0 ? ", MFU " + percent(plan.step->mfu) : ""));
    for (const std::string& reason : plan.reasons)
        text += bullet(style, reason);
    if (plan.smallestChange)
        text += bullet(style, fmt::format("smallest change that fits: {}, then {} GiB", plan.smallestChange->text,
                                          gibibytes(plan.smallestChange->peakUsed)));
    return text;
}

Table inputTable()
{
    return Table({{"symbol", "", Align::Left, 0, 0},
                  {"meaning", "", Align::Left, 24, 0, true},
                  {"value", "", Align::Right, 0, 0},
                  {"source", "", Align::Left, 24, 0, true}});
}

std::string figureText(const Figure& figure)
{
    return provenanceText(figure.tag, figure.source);
}

std::string noteText(const Note& note)
{
    return note.text + " (" + provenanceText(note.tag, note.source) + ")";
}

/// Files that ship are named from the home folder, as a user would.
std::string shownFile(const std::string& path)
{
    const std::string home = homeFolder() + "/";
    return path.rfind(home, 0) == 0 ? path.substr(home.size()) : path;
}

} // namespace

std::string explainInputs(const Scenario& scenario, const OutputStyle& style)
{
    const Architecture& shape = scenario.model.architecture;
    const Training& training = scenario.training;
    const Cluster& cluster = scenario.cluster;
    Table table = inputTable();
    const auto addCount = [&](const char* symbol, const char* meaning, std::int64_t value, const std::string& source) {
        if (value > 0)
            table.addRow({symbol, meaning, grouped(value), shownFile(source)});
    };
    addCount("P", "parameters", scenario.model.parameters(), scenario.model.source);
    if (scenario.model.trainableParameters() != scenario.model.parameters())
        addCount("", "of these trainable", scenario.model.trainableParameters(), "the scenario's adapters");
    addCount("L", "blocks", shape.layers, scenario.model.source);
    addCount("H", "hidden size", shape.hidden, scenario.model.source);
    addCount("I", "inner size of the MLP", shape.ffn, scenario.model.source);
    addCount("V", "vocabulary", shape.vocab, scenario.model.source);
    addCount("a", "attention heads", shape.heads, scenario.model.source);
    addCount("a_kv", "key and value heads", shape.kvHeads, scenario.model.source);
    addCount("E", "experts", shape.experts, scenario.model.source);
    addCount("k", "experts a token meets", shape.expertsPerToken, scenario.model.source);
    addCount("s", "tokens of a sequence", training.sequenceLength, scenario.file);
    addCount("b", "sequences of a micro-batch on one GPU", training.microBatch, scenario.file);
    addCount("T", "s x b: tokens on one GPU at a time", training.tokensPerMicroBatch(), scenario.file);
    addCount("G", "micro-steps per optimizer step", training.gradientAccumulation, scenario.file);
    addCount("N", "GPUs", cluster.gpus(), cluster.source);

    const auto addFigure = [&](const char* meaning, const Figure& figure, double unit, const char* unitName) {
        if (figure.value > 0)
            table.addRow(
                {"", meaning, fmt::format("{} {}", hundredths(figure.value / unit), unitName), figureText(figure)});
    };
    addFigure("memory of a GPU that programs get", cluster.gpu.memory, kGiB, "GiB");
    addFigure("memory of a node's host", cluster.hostMemory, kGiB, "GiB");
    addFigure("NVMe of a node", cluster.nvmeCapacity, kGB, "GB");
    const auto dtype = training.precision.mixed.value_or(training.precision.load);
    if (const auto peak = cluster.gpu.peakFlops.find(dtype); peak != cluster.gpu.peakFlops.end())
        addFigure("dense peak of a GPU in the compute dtype", peak->second, 1e12, "TFLOP/s");
    addFigure("memory bandwidth of a GPU", cluster.gpu.memoryBandwidth, kGB, "GB/s");
    if (cluster.gpusPerNode > 1)
        addFigure("link in a node, per GPU", cluster.intraNode.bandwidth, kGB, "GB/s");
    if (cluster.nodes > 1)
        addFigure("link between nodes, per node", cluster.interNode.bandwidth, kGB, "GB/s");
    addFigure("power of a GPU", cluster.gpu.power, 1, "W");
    addFigure("price of a GPU", cluster.pricePerGpuHour, 1, "$/h");
    return section(style, "Inputs", table.text(style));
}

std::string explainCheckpoint(const Plan& plan, const OutputStyle& style)
{
    const CheckpointSize& checkpoint = plan.checkpoint;
    if (checkpoint.full16Bit == 0_B && checkpoint.shardedTotal == 0_B)
        return {};
    Table table({{"what", "", Align::Left, 0, 0}, {"GB", "", Align::Right, 0, 0}});
    table.addRow({"weights in one piece, 16 bit", gigabytes(checkpoint.full16Bit)});
    table.addRow({"weights in one piece, fp32", gigabytes(checkpoint.fullFp32)});
    table.addRow({"sharded with optimizer states, all ranks", gigabytes(checkpoint.shardedTotal)});
    table.addRow({"of it per rank", gigabytes(checkpoint.shardedPerRank)});
    std::string text = table.text(style);
    if (plan.checkpointSeconds)
        text += paragraph(style,
                          fmt::format("Writing all of it sharded takes {} at the bandwidth of the cluster's storage.",
                                      spokenSeconds(*plan.checkpointSeconds)));
    if (!checkpoint.layout.empty())
        text += paragraph(style, fmt::format("{} (files per rank: {})", checkpoint.layout, checkpoint.filesPerRank));
    return section(style, "Checkpoint", text);
}

std::string explainNotes(const Plan& plan, const OutputStyle& style)
{
    std::string assumed;
    for (const Note& note : plan.assumptions)
        assumed += bullet(style, noteText(note));
    std::string excluded;
    for (const Note& note : plan.excluded)
        excluded += bullet(style, note.source.empty() ? note.text : noteText(note));
    return section(style, "Assumed", assumed) + section(style, "Left out", excluded);
}

std::string explainText(const Scenario& scenario, const Plan& plan, const OutputStyle& style)
{
    std::string text = scenarioSummary(scenario, style) + '\n' + headline(plan, style);
    if (plan.verdict == Verdict::NotPossible)
        return text;
    text += explainInputs(scenario, style);
    text += explainTime(scenario, plan, style);
    text += explainGpuMemory(scenario, plan, style);
    text += explainPeak(plan, style);
    text += explainCurve(plan, style);
    text += explainHostAndNvme(scenario, plan, style);
    text += explainTraffic(scenario, plan, style);
    text += explainCheckpoint(plan, style);
    text += explainNotes(plan, style);
    return text;
}

} // namespace shardwright
