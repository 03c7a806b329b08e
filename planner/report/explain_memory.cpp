#include <algorithm>

#include <fmt/format.h>

#include "planner/report/explain_report.hpp"
#include "planner/report/memory_parts.hpp"
#include "planner/report/number_format.hpp"
#include "planner/report/scenario_summary.hpp"
#include "planner/report/table.hpp"
#include "planner/report/text_layout.hpp"

namespace shardwright {

namespace {

Table itemTable()
{
    return Table({{"what is live", "", Align::Left, 20, 0, true},
                  {"kind", "", Align::Left, 12, 3, true},
                  {"total", "GiB", Align::Right, 0, 0},
                  {"share", "", Align::Right, 0, 2},
                  {"count", "", Align::Right, 0, 0},
                  {"each", "", Align::Right, 0, 0},
                  {"formula of one", "bytes", Align::Left, 14, 0, true},
                  {"source", "", Align::Left, 14, 1, true}});
}

/// Items that differ only in the layer they belong to as one, largest total first.
std::vector<LiveItem> merged(const std::vector<LiveItem>& items)
{
    std::vector<LiveItem> result;
    for (const LiveItem& item : items) {
        const auto same = std::find_if(result.begin(), result.end(), [&](const LiveItem& other) {
            return other.name == item.name && other.formula == item.formula && other.bytesEach == item.bytesEach &&
                   other.category == item.category && other.place == item.place;
        });
        if (same == result.end())
            result.push_back(item);
        else
            same->count = checkedAdd(same->count, item.count);
    }
    std::stable_sort(result.begin(), result.end(),
                     [](const LiveItem& left, const LiveItem& right) { return left.bytes() > right.bytes(); });
    return result;
}

std::string itemsText(const std::vector<LiveItem>& items, Bytes whole, const OutputStyle& style)
{
    Table table = itemTable();
    Bytes rest;
    std::int64_t restCount = 0;
    constexpr double kWorthARow = 0.001; // of the whole; the JSON form lists every item
    for (const LiveItem& item : merged(items)) {
        if (item.bytes().asDouble() < kWorthARow * whole.asDouble()) {
            rest += item.bytes();
            restCount = checkedAdd(restCount, item.count);
            continue;
        }
        const std::size_t part = partOf(item.category);
        std::string kind(memoryPartName(part));
        if (item.place == Place::HostPinned)
            kind += ", pinned";
        table.addRow({item.name, Cell(std::move(kind), memoryParts()[part].ink), gibibytes(item.bytes()),
                      percentOf(item.bytes(), whole), grouped(item.count), formatBinary(item.bytesEach), item.formula,
                      item.source});
    }
    if (restCount > 0)
        table.addRow({"buffers below 0.1 % each", "", gibibytes(rest), percentOf(rest, whole), grouped(restCount), "",
                      "", "--format json lists them"});
    return table.text(style);
}

} // namespace

std::string explainGpuMemory(const Scenario& scenario, const Plan& plan, const OutputStyle& style)
{
    const GpuMemory& gpu = plan.gpu;
    Table table({{"figure", "", Align::Left, 16, 0, true},
                 {"GiB", "", Align::Right, 0, 0},
                 {"how it comes about", "", Align::Left, 30, 0, true}});
    const auto add = [&](const char* name, Bytes bytes, std::string how, Ink ink = Ink::Plain) {
        table.addRow({Cell(name, ink), Cell(gibibytes(bytes), ink), std::move(how)});
    };
    const auto addState = [&](const char* name, Bytes bytes) {
        if (bytes > 0_B)
            add(name, bytes, "as the strategy partitions them, per rank");
    };
    addState("parameters", plan.states.parameters);
    addState("master weights", plan.states.masterParameters);
    addState("gradients", plan.states.gradients);
    addState("optimizer states", plan.states.optimizerStates);
    add("model states", gpu.modelStates, "the sum of these", Ink::Strong);
    if (gpu.initPeak > 0_B)
        add("initialisation peak", gpu.initPeak, "most live bytes while the model is built and sharded");
    if (gpu.peakBeforeFirstStep > 0_B)
        add("peak before first step", gpu.peakBeforeFirstStep,
            "while optimizer states that are made lazily do not exist yet");
    add("held between steps", gpu.held, "torch.cuda.memory_allocated() after a step");
    add("peak allocated", gpu.peakAllocated,
        "most live bytes of tensors over a step, replayed from the schedule: at " + gpu.peakMoment +
            "; torch.cuda.max_memory_allocated()",
        Ink::Strong);
    add("peak reserved", gpu.peakReserved,
        std::string("what PyTorch's caching allocator holds then; torch.cuda.max_memory_reserved()") +
            (gpu.allocatorFlushes ? "; it has to give cached blocks back to the driver within the step" : ""),
        Ink::Strong);
    for (const Overhead& overhead : gpu.overheads)
        add(overhead.name.c_str(), overhead.bytes, provenanceText(overhead.tag, overhead.source));
    add("used", gpu.peakUsed, "reserved and what is outside the tensors; what nvidia-smi shows", Ink::Strong);
    const Figure& memory = scenario.cluster.gpu.memory;
    add("capacity", gpu.capacity, "what the driver gives to programs; " + provenanceText(memory.tag, memory.source));
    table.addRow({"headroom", gibibytes(gpu.capacity - gpu.peakUsed), "capacity less used"});
    return section(style, "Memory of one GPU", table.text(style));
}

std::string explainPeak(const Plan& plan, const OutputStyle& style)
{
    if (plan.gpu.peakItems.empty())
        return {};
    return section(style, "What stands at the peak: " + plan.gpu.peakMoment,
                   itemsText(plan.gpu.peakItems, plan.gpu.peakAllocated, style));
}

std::string explainCurve(const Plan& plan, const OutputStyle& style)
{
    if (plan.gpu.curve.empty())
        return {};
    Chart chart;
    chart.parts = memoryParts();
    chart.columns.reserve(plan.gpu.curve.size());
    for (std::size_t i = 0; i < plan.gpu.curve.size(); ++i) {
        const CurvePoint& point = plan.gpu.curve[i];
        chart.columns.push_back(allocatedStack(point.byCategory));
        if (i == 0 || point.phase != plan.gpu.curve[i - 1].phase)
            chart.marks.push_back({i, std::string(nameOf(point.phase))});
    }
    chart.capacity = plan.gpu.capacity.asDouble();
    chart.unit = kGiB;
    chart.unitName = "GiB";
    constexpr int kLabels = 22; // labels of the y axis on the left, " capacity" on the right
    constexpr int kLeast = 20;
    if (style.width > 0)
        chart.width = std::max(kLeast, std::min(chart.width, style.width - kLabels));
    return section(style, "Allocated memory over the step, operation by operation (not to scale in time)",
                   stackedChart(style, chart) + memoryLegend(style, chart.columns));
}

std::string explainHostAndNvme(const Scenario& scenario, const Plan& plan, const OutputStyle& style)
{
    const HostMemory& host = plan.host;
    std::string hostText;
    if (host.bytesPerNode > 0_B || host.initPeakPerNode > 0_B) {
        Table table({{"figure", "", Align::Left, 16, 0, true},
                     {"GiB", "", Align::Right, 0, 0},
                     {"how it comes about", "", Align::Left, 30, 0, true}});
        table.addRow({"pinned per rank", gibibytes(host.pinnedPerRank), "page-locked buffers"});
        table.addRow({"pageable per rank", gibibytes(host.pageablePerRank), "ordinary memory"});
        table.addRow({Cell("per node", Ink::Strong), Cell(gibibytes(host.bytesPerNode), Ink::Strong),
                      fmt::format("of {} ranks", scenario.cluster.gpusPerNode)});
        table.addRow({"while loading, per node", gibibytes(host.initPeakPerNode), "when checkpoints are read"});
        table.addRow({"capacity of a node", gibibytes(host.capacity),
                      provenanceText(scenario.cluster.hostMemory.tag, scenario.cluster.hostMemory.source)});
        hostText = table.text(style);
        if (!host.items.empty())
            hostText += '\n' + itemsText(host.items, host.bytesPerRank, style);
    }
    std::string nvmeText;
    if (plan.nvme.bytesPerNode > 0_B) {
        Table table({{"per node", "", Align::Left, 0, 0}, {"GB", "", Align::Right, 0, 0}});
        table.addRow({"stored", gigabytes(plan.nvme.bytesPerNode)});
        table.addRow({"read per step", gigabytes(plan.nvme.readBytesPerStep)});
        table.addRow({"written per step", gigabytes(plan.nvme.writeBytesPerStep)});
        table.addRow({"capacity", gigabytes(plan.nvme.capacity)});
        nvmeText = table.text(style);
    }
    return section(style, "Host memory", hostText) + section(style, "NVMe", nvmeText);
}

} // namespace shardwright
