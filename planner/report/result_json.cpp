#include "planner/report/result_json.hpp"

#include <cmath>
#include <functional>

#include "core/json_cursor.hpp"
#include "planner/report/table.hpp"
#include "planner/report/time_parts.hpp"

namespace shardwright {

namespace {

/// Ψ is a sum of quotients: what floating-point addition leaves behind the ninth place is no volume.
double withoutNoise(double psi)
{
    constexpr double kPlaces = 1e9;
    return std::round(psi * kPlaces) / kPlaces;
}

Json byCategory(const CategoryBytes& bytes)
{
    Json json = Json::object();
    for (const auto& [category, name] : EnumNames<Category>::table)
        json[std::string(name)] = bytes[static_cast<std::size_t>(category)].count();
    return json;
}

Json liveItems(const std::vector<LiveItem>& items)
{
    Json json = Json::array();
    for (const LiveItem& item : items)
        json.push_back({{"name", item.name},
                        {"category", nameOf(item.category)},
                        {"place", nameOf(item.place)},
                        {"count", item.count},
                        {"bytes_each", item.bytesEach.count()},
                        {"bytes", item.bytes().count()},
                        {"formula", item.formula},
                        {"source", item.source}});
    return json;
}

Json curve(const std::vector<CurvePoint>& points)
{
    Json json = Json::array();
    for (const CurvePoint& point : points)
        json.push_back({{"op", point.op},
                        {"phase", nameOf(point.phase)},
                        {"layer", point.layer},
                        {"bytes", point.total.count()},
                        {"by_category", byCategory(point.byCategory)}});
    return json;
}

Json overheads(const std::vector<Overhead>& list)
{
    Json json = Json::array();
    for (const Overhead& overhead : list)
        json.push_back({{"name", overhead.name},
                        {"bytes", overhead.bytes.count()},
                        {"tag", nameOf(overhead.tag)},
                        {"source", overhead.source}});
    return json;
}

Json notes(const std::vector<Note>& list)
{
    Json json = Json::array();
    for (const Note& note : list)
        json.push_back({{"text", note.text}, {"tag", nameOf(note.tag)}, {"source", note.source}});
    return json;
}

Json gpuToJson(const Plan& plan, ReportDetail detail)
{
    const GpuMemory& gpu = plan.gpu;
    Json json = {{"capacity_bytes", gpu.capacity.count()},
                 {"model_states_bytes", gpu.modelStates.count()},
                 {"peak_allocated_bytes", gpu.peakAllocated.count()},
                 {"peak_reserved_bytes", gpu.peakReserved.count()},
                 {"peak_used_bytes", gpu.peakUsed.count()},
                 {"by_category", byCategory(gpu.byCategory)},
                 {"peak_moment", gpu.peakMoment},
                 {"held_bytes", gpu.held.count()},
                 {"init_peak_bytes", gpu.initPeak.count()},
                 {"peak_before_first_step_bytes", gpu.peakBeforeFirstStep.count()},
                 {"held_before_first_step_bytes", gpu.heldBeforeFirstStep.count()},
                 {"allocator_flushes", gpu.allocatorFlushes},
                 {"overheads", overheads(gpu.overheads)}};
    if (detail == ReportDetail::Full) {
        json["peak_items"] = liveItems(gpu.peakItems);
        json["curve"] = curve(gpu.curve);
    }
    return json;
}

Json hostToJson(const HostMemory& host, ReportDetail detail)
{
    Json json = {{"bytes_per_rank", host.bytesPerRank.count()},
                 {"pinned_bytes_per_rank", host.pinnedPerRank.count()},
                 {"pageable_bytes_per_rank", host.pageablePerRank.count()},
                 {"bytes_per_node", host.bytesPerNode.count()},
                 {"capacity_bytes", host.capacity.count()},
                 {"init_peak_bytes_per_node", host.initPeakPerNode.count()}};
    if (detail == ReportDetail::Full)
        json["items"] = liveItems(host.items);
    return json;
}

Json trafficToJson(const Traffic& traffic)
{
    Json collectives = Json::array();
    for (const CollectiveTraffic& one : traffic.collectives)
        collectives.push_back({{"op", nameOf(one.op)},
                               {"group", one.group},
                               {"ranks", one.ranks},
                               {"count", one.count},
                               {"bytes", one.payloadBytes.count()},
                               {"payload", one.payload},
                               {"nodes", one.nodes},
                               {"sent_bytes_per_gpu", one.sentBytesPerGpu.count()}});
    return {{"psi", withoutNoise(traffic.psi)},
            {"psi_textbook", traffic.psiTextbook},
            {"bytes_per_gpu", traffic.sentBytesPerGpu.count()},
            {"intra_node_bytes_per_gpu", traffic.intraNodeBytesPerGpu.count()},
            {"inter_node_bytes_per_gpu", traffic.interNodeBytesPerGpu.count()},
            {"inter_node_bytes_per_node", traffic.interNodeBytesPerNode.count()},
            {"collectives", collectives},
            {"psi_inter_node", withoutNoise(traffic.psiInterNode)},
            {"psi_difference", traffic.psiDifference},
            {"inter_node_ring_bytes_per_node", traffic.interNodeRingBytesPerNode.count()},
            {"host_to_device_bytes", traffic.hostToDeviceBytes.count()},
            {"device_to_host_bytes", traffic.deviceToHostBytes.count()}};
}

Json suggestionToJson(const std::optional<Suggestion>& suggestion)
{
    if (!suggestion)
        return nullptr;
    return {
        {"text", suggestion->text}, {"steps", suggestion->steps}, {"peak_used_bytes", suggestion->peakUsed.count()}};
}

/// Times are told to the nanosecond: what floating-point addition leaves behind it is no time.
Json seconds(double value)
{
    constexpr double kPlaces = 1e9;
    return std::round(value * kPlaces) / kPlaces;
}

Json optionalNumber(const std::optional<double>& value)
{
    return value ? Json(*value) : Json(nullptr);
}

Json stepToJson(const std::optional<StepTime>& step)
{
    if (!step)
        return nullptr;
    Json breakdown = Json::object();
    for (const TimePart& part : timeParts())
        breakdown[std::string(part.field)] = seconds(step->breakdown.*part.seconds);
    return {{"seconds", seconds(step->seconds)},
            {"tokens_per_second", step->tokensPerSecond},
            {"tokens_per_second_per_gpu", step->tokensPerSecondPerGpu},
            {"samples_per_second", step->samplesPerSecond},
            {"tflops_per_gpu", step->tflopsPerGpu},
            {"mfu", step->mfu},
            {"hfu", step->hfu},
            {"breakdown", breakdown},
            {"hidden_communication_seconds", seconds(step->hiddenCommunicationSeconds)},
            {"low_seconds", seconds(step->lowSeconds)},
            {"high_seconds", seconds(step->highSeconds)},
            {"assumptions", notes(step->assumptions)}};
}

struct StepField {
    const char* name;
    Json (*value)(const StepTime&);
};

/// CSV columns of a step's time, before its breakdown.
const std::vector<StepField>& stepFields()
{
    static const std::vector<StepField> fields{
        {"step.seconds", [](const StepTime& step) { return seconds(step.seconds); }},
        {"step.tokens_per_second", [](const StepTime& step) { return Json(step.tokensPerSecond); }},
        {"step.tokens_per_second_per_gpu", [](const StepTime& step) { return Json(step.tokensPerSecondPerGpu); }},
        {"step.samples_per_second", [](const StepTime& step) { return Json(step.samplesPerSecond); }},
        {"step.tflops_per_gpu", [](const StepTime& step) { return Json(step.tflopsPerGpu); }},
        {"step.mfu", [](const StepTime& step) { return Json(step.mfu); }},
        {"step.hfu", [](const StepTime& step) { return Json(step.hfu); }},
        {"step.hidden_communication_seconds",
         [](const StepTime& step) { return seconds(step.hiddenCommunicationSeconds); }},
        {"step.low_seconds", [](const StepTime& step) { return seconds(step.lowSeconds); }},
        {"step.high_seconds", [](const StepTime& step) { return seconds(step.highSeconds); }}};
    return fields;
}

Json costToJson(const StepCost& cost)
{
    return {{"dollars_per_step", optionalNumber(cost.dollarsPerStep)},
            {"dollars_per_billion_tokens", optionalNumber(cost.dollarsPerBillionTokens)},
            {"joules_per_step", optionalNumber(cost.joulesPerStep)}};
}

} // namespace

Json planToJson(const Plan& plan, ReportDetail detail)
{
    return {{"strategy", plan.strategy},
            {"framework", plan.framework},
            {"fits", plan.fits()},
            {"reasons", plan.reasons},
            {"remarks", plan.remarks},
            {"gpu", gpuToJson(plan, detail)},
            {"host", hostToJson(plan.host, detail)},
            {"nvme",
             {{"bytes_per_node", plan.nvme.bytesPerNode.count()},
              {"read_bytes_per_step", plan.nvme.readBytesPerStep.count()},
              {"write_bytes_per_step", plan.nvme.writeBytesPerStep.count()},
              {"capacity_bytes", plan.nvme.capacity.count()}}},
            {"traffic", trafficToJson(plan.traffic)},
            {"step", stepToJson(plan.step)},
            {"cost", costToJson(plan.cost)},
            {"network_needed_bytes_per_second_per_node", optionalNumber(plan.networkBytesPerSecondPerNode)},
            {"verdict", nameOf(plan.verdict)},
            {"headroom", plan.headroom},
            {"states",
             {{"parameters_bytes", plan.states.parameters.count()},
              {"master_parameters_bytes", plan.states.masterParameters.count()},
              {"gradients_bytes", plan.states.gradients.count()},
              {"optimizer_states_bytes", plan.states.optimizerStates.count()}}},
            {"checkpoint",
             {{"full_16bit_bytes", plan.checkpoint.full16Bit.count()},
              {"full_fp32_bytes", plan.checkpoint.fullFp32.count()},
              {"sharded_bytes", plan.checkpoint.shardedTotal.count()},
              {"sharded_bytes_per_rank", plan.checkpoint.shardedPerRank.count()},
              {"files_per_rank", plan.checkpoint.filesPerRank},
              {"layout", plan.checkpoint.layout},
              {"write_seconds", optionalNumber(plan.checkpointSeconds)}}},
            {"smallest_change", suggestionToJson(plan.smallestChange)},
            {"assumptions", notes(plan.assumptions)},
            {"excluded", notes(plan.excluded)}};
}

Json resultToJson(const Scenario& scenario, const std::vector<Plan>& plans,
                  const std::optional<Recommendation>& recommendation, ReportDetail detail)
{
    Json list = Json::array();
    for (const Plan& plan : plans)
        list.push_back(planToJson(plan, detail));
    return {{"schema", kResultSchema},
            {"scenario", scenario.name},
            {"model",
             {{"id", scenario.model.id},
              {"parameters", scenario.model.parameters()},
              {"trainable_parameters", scenario.model.trainableParameters()}}},
            {"cluster", {{"gpus", scenario.cluster.gpus()}, {"nodes", scenario.cluster.nodes}}},
            {"plans", list},
            {"recommended", recommendation ? Json(recommendation->strategy) : Json(nullptr)},
            {"recommended_because", recommendation ? Json(recommendation->reason) : Json(nullptr)}};
}

std::string jsonText(const Json& json, int indent)
{
    return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

std::string plansToCsv(const std::vector<Plan>& plans)
{
    struct Field {
        std::string name;
        std::function<std::string(const Plan&)> value;
    };
    const auto bytes = [](const char* name, std::function<Bytes(const Plan&)> value) {
        return Field{name,
                     [value = std::move(value)](const Plan& plan) { return std::to_string(value(plan).count()); }};
    };
    const auto number = [](const char* name, std::function<double(const Plan&)> value) {
        return Field{name, [value = std::move(value)](const Plan& plan) { return Json(value(plan)).dump(); }};
    };
    std::vector<Field> fields{
        {"strategy", [](const Plan& plan) { return plan.strategy; }},
        {"framework", [](const Plan& plan) { return plan.framework; }},
        {"verdict", [](const Plan& plan) { return std::string(nameOf(plan.verdict)); }},
        number("headroom", [](const Plan& plan) { return plan.headroom; }),
        bytes("gpu.capacity_bytes", [](const Plan& plan) { return plan.gpu.capacity; }),
        bytes("gpu.model_states_bytes", [](const Plan& plan) { return plan.gpu.modelStates; }),
        bytes("gpu.peak_allocated_bytes", [](const Plan& plan) { return plan.gpu.peakAllocated; }),
        bytes("gpu.peak_reserved_bytes", [](const Plan& plan) { return plan.gpu.peakReserved; }),
        bytes("gpu.peak_used_bytes", [](const Plan& plan) { return plan.gpu.peakUsed; }),
        {"gpu.peak_moment", [](const Plan& plan) { return plan.gpu.peakMoment; }},
        bytes("host.pinned_bytes_per_rank", [](const Plan& plan) { return plan.host.pinnedPerRank; }),
        bytes("host.bytes_per_rank", [](const Plan& plan) { return plan.host.bytesPerRank; }),
        bytes("host.bytes_per_node", [](const Plan& plan) { return plan.host.bytesPerNode; }),
        bytes("nvme.bytes_per_node", [](const Plan& plan) { return plan.nvme.bytesPerNode; }),
        bytes("nvme.read_bytes_per_step", [](const Plan& plan) { return plan.nvme.readBytesPerStep; }),
        bytes("nvme.write_bytes_per_step", [](const Plan& plan) { return plan.nvme.writeBytesPerStep; }),
        number("traffic.psi", [](const Plan& plan) { return withoutNoise(plan.traffic.psi); }),
        number("traffic.psi_textbook", [](const Plan& plan) { return plan.traffic.psiTextbook; }),
        bytes("traffic.bytes_per_gpu", [](const Plan& plan) { return plan.traffic.sentBytesPerGpu; }),
        bytes("traffic.intra_node_bytes_per_gpu", [](const Plan& plan) { return plan.traffic.intraNodeBytesPerGpu; }),
        bytes("traffic.inter_node_bytes_per_gpu", [](const Plan& plan) { return plan.traffic.interNodeBytesPerGpu; }),
        bytes("traffic.inter_node_bytes_per_node", [](const Plan& plan) { return plan.traffic.interNodeBytesPerNode; }),
    };
    for (const StepField& field : stepFields())
        fields.push_back({field.name, [value = field.value](const Plan& plan) {
                              return plan.step ? value(*plan.step).dump() : std::string();
                          }});
    for (const TimePart& part : timeParts())
        fields.push_back({"step.breakdown." + std::string(part.field), [part](const Plan& plan) {
                              return plan.step ? seconds(plan.step->breakdown.*part.seconds).dump() : std::string();
                          }});
    const auto optional = [&fields](const char* name, std::optional<double> (*value)(const Plan&)) {
        fields.push_back({name, [value](const Plan& plan) {
                              const auto given = value(plan);
                              return given ? Json(*given).dump() : std::string();
                          }});
    };
    optional("cost.dollars_per_step", [](const Plan& plan) { return plan.cost.dollarsPerStep; });
    optional("cost.dollars_per_billion_tokens", [](const Plan& plan) { return plan.cost.dollarsPerBillionTokens; });
    optional("cost.joules_per_step", [](const Plan& plan) { return plan.cost.joulesPerStep; });
    optional("network_needed_bytes_per_second_per_node",
             [](const Plan& plan) { return plan.networkBytesPerSecondPerNode; });
    optional("checkpoint.write_seconds", [](const Plan& plan) { return plan.checkpointSeconds; });
    std::vector<Column> columns;
    columns.reserve(fields.size());
    for (const Field& field : fields)
        columns.push_back({field.name, "", Align::Left, 0, 0});
    Table table(columns);
    for (const Plan& plan : plans) {
        std::vector<Cell> cells;
        cells.reserve(fields.size());
        for (const Field& field : fields)
            cells.emplace_back(field.value(plan));
        table.addRow(std::move(cells));
    }
    return table.csv();
}

} // namespace shardwright
