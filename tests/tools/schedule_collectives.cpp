// Prints what a strategy's schedule sends, for the comparison with the framework itself
// (tests/conformance/fsdp_collectives_against_torch.py), and what stands at its peak (fsdp_memory_against_torch.py):
//     schedule_collectives CONFIG NODES GPUS_PER_NODE ACCUMULATION STRATEGY_JSON LOAD_DTYPE MIXED_DTYPE|no [LORA_RANK]
// STRATEGY_JSON is a strategy as a scenario holds it. One JSON object a line: operation, elements of the whole tensor,
// dtype, group size; the middle micro-steps are written out as often as they happen. With SHARDWRIGHT_PEAK set in the
// environment one line instead: bytes live on the GPU at the peak, by category.

#include <cstdlib>
#include <exception>
#include <string>

#include <fmt/format.h>

#include "core/cluster_file.hpp"
#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "core/scenario_file.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/readers/memory_replay.hpp"

namespace {

using namespace shardwright;

void print(const Schedule& schedule)
{
    for (const Segment& segment : schedule.segments)
        for (std::int64_t repetition = 0; repetition < segment.repeat; ++repetition)
            for (std::uint32_t i = segment.firstOp; i < segment.endOp; ++i) {
                const Op& op = schedule.ops[i];
                if (op.payload < 0 || op.group < 0 || !isCollective(op.kind))
                    continue;
                const Payload& payload = schedule.sizes.payloads[static_cast<std::size_t>(op.payload)];
                const Group& group = schedule.sizes.groups[static_cast<std::size_t>(op.group)];
                if (group.ranks <= 1 || payload.bytes == Bytes(0))
                    continue;
                for (std::int32_t count = 0; count < op.payloadCount; ++count)
                    fmt::print("{}\n", Json{{"op", nameOf(op.kind)},
                                            {"elements", payload.bytes.count() * 8 / bitsOf(payload.native)},
                                            {"dtype", nameOf(payload.native)},
                                            {"ranks", group.ranks}}
                                           .dump());
            }
}

void printPeak(const Schedule& schedule)
{
    const MemoryReplay memory = replayMemory(schedule, false);
    Json categories = Json::object();
    for (std::size_t i = 0; i < kCategoryCount; ++i)
        categories[std::string(nameOf(static_cast<Category>(i)))] = memory.gpuByCategory[i].count();
    fmt::print("{}\n", Json{{"total", memory.gpu.bytes.count()}, {"categories", categories}}.dump());
}

DType dtypeNamed(const std::string& name)
{
    const auto dtype = valueOf<DType>(name);
    if (!dtype)
        throw InputError("command line", "dtype", fmt::format("unknown dtype '{}'", name), allNames<DType>());
    return *dtype;
}

} // namespace

int main(int argc, char** argv)
{
    if (argc != 8 && argc != 9) {
        fmt::print(stderr, "usage: schedule_collectives CONFIG NODES GPUS_PER_NODE ACCUMULATION STRATEGY_JSON "
                           "LOAD_DTYPE MIXED_DTYPE|no [LORA_RANK]\n");
        return 2;
    }
    try {
        Model model = readModel(argv[1]);
        Training training;
        if (argc == 9) {
            training.lora.emplace();
            training.lora->rank = std::stoll(argv[8]);
            model = applyLora(model, *training.lora, "command line", "LORA_RANK");
        }
        Cluster cluster;
        cluster.nodes = std::stoi(argv[2]);
        cluster.gpusPerNode = std::stoi(argv[3]);
        training.sequenceLength = 8;
        training.gradientAccumulation = std::stoll(argv[4]);
        training.precision.load = dtypeNamed(argv[6]);
        training.precision.mixed.reset();
        if (std::string(argv[7]) != "no")
            training.precision.mixed = dtypeNamed(argv[7]);
        Findings findings("command line");
        const Json json = parseJson(argv[5], "command line");
        const Strategy strategy = strategyFromJson(JsonCursor(json, findings), cluster.gpusPerNode);
        findings.throwIfAny();
        const PlanInput input{model, cluster, training, strategy};
        const std::vector<std::string> reasons = refusals(input);
        if (!reasons.empty())
            throw InputError("command line", "strategy", reasons.front());
        const Schedule schedule = makeRules(input)->emit();
        if (std::getenv("SHARDWRIGHT_PEAK") != nullptr)
            printPeak(schedule);
        else
            print(schedule);
    } catch (const std::exception& error) {
        fmt::print(stderr, "{}\n", error.what());
        return 2;
    }
    return 0;
}
