#include "planner/costs/op_costs.hpp"

#include "planner/readers/time_simulation.hpp"

namespace shardwright {

namespace {

struct PinnedMemory {
    bool states = true;     // gradients and optimizer states
    bool parameters = true; // shards that are gathered
};

PinnedMemory pinnedMemory(const Strategy& strategy)
{
    if (const auto* fsdp2 = std::get_if<Fsdp2Options>(&strategy.options))
        return {fsdp2->pinMemory, fsdp2->pinMemory};
    if (const auto* deepspeed = std::get_if<DeepSpeedOptions>(&strategy.options))
        return {deepspeed->pinMemory,
                deepspeed->offloadParam == OffloadDevice::None ? deepspeed->pinMemory : deepspeed->paramPinMemory};
    return {};
}

} // namespace

bool hasVectorizedHostOptimizer(const PlanInput& input)
{
    struct Visitor {
        const Training& training;
        // torch.optim with fused=True has a vectorised kernel for the CPU too (aten/src/ATen/native/cpu/
        // FusedAdamKernel.cpp, since PyTorch 2.4); otherwise it runs one elementwise operation after the other.
        bool operator()(const DdpOptions&) const { return training.fusedOptimizer; }
        bool operator()(const Fsdp1Options&) const { return training.fusedOptimizer; }
        bool operator()(const Fsdp2Options&) const { return training.fusedOptimizer; }
        bool operator()(const DeepSpeedOptions&) const { return true; } // csrc/adam/cpu_adam.cpp
        bool operator()(const NativeOptions&) const { return true; }    // shardrun's own
        bool operator()(const MegatronOptions&) const { return true; }  // apex' or Transformer Engine's fused Adam
    };
    return std::visit(Visitor{input.training}, input.strategy.options);
}

OpCosts::OpCosts(const PlanInput& input, const ActivationModel& activations, const SizeTable& sizes)
    : m_input(input), m_activations(activations), m_sizes(sizes), m_collectives(input.cluster),
      m_transfers(input.cluster, input.training.hostThreads), m_host(input),
      m_vectorizedHostOptimizer(hasVectorizedHostOptimizer(input)),
      m_checkpointsToHost(input.training.checkpointing == Checkpointing::Cpu),
      m_launchBlocking(input.training.launchBlocking)
{
    const PinnedMemory pinned = pinnedMemory(input.strategy);
    m_statesPinned = pinned.states;
    m_parametersPinned = pinned.parameters;
}

bool OpCosts::pinned(const Op& op) const
{
    // deepspeed.checkpointing copies a block's input with Tensor.cpu() and .to(device): pageable memory
    if (m_checkpointsToHost && op.layer >= 0 && op.payload == 0)
        return false;
    return op.kind == OpKind::CopyToDevice && op.phase != Phase::Optimizer ? m_parametersPinned : m_statesPinned;
}

double OpCosts::secondsOfOne(const Op& op) const
{
    if (op.payload < 0)
        return 0;
    const Bytes bytes = m_sizes.payloads[static_cast<std::size_t>(op.payload)].bytes;
    if (isCollective(op.kind))
        return op.group < 0 || bytes == Bytes(0)
                   ? 0
                   : m_collectives.seconds(op.kind, bytes, m_sizes.groups[static_cast<std::size_t>(op.group)]);
    switch (op.kind) {
    case OpKind::CopyToDevice: return m_transfers.copyToDevice(bytes, pinned(op));
    case OpKind::CopyToHost: return m_transfers.copyToHost(bytes, pinned(op));
    case OpKind::NvmeRead: return m_transfers.nvmeRead(bytes);
    case OpKind::NvmeWrite: return m_transfers.nvmeWrite(bytes);
    case OpKind::HostOptimizerStep: return m_transfers.hostOptimizer(bytes, m_vectorizedHostOptimizer);
    case OpKind::Copy:
    case OpKind::Quantize:
    case OpKind::Dequantize: return m_transfers.gpuMemory(bytes);
    case OpKind::OptimizerStep: return m_transfers.gpuOptimizer(bytes);
    default: return 0;
    }
}

double OpCosts::seconds(const Op& op) const
{
    // While the host issues a kernel, nothing runs: it has waited for the one before.
    const bool issued =
        op.kind != OpKind::HostOptimizerStep && op.kind != OpKind::NvmeRead && op.kind != OpKind::NvmeWrite;
    return runningSeconds(op) + (m_launchBlocking && issued ? hostSeconds(op) : 0);
}

double OpCosts::runningSeconds(const Op& op) const
{
    switch (op.kind) {
    case OpKind::Allocate:
    case OpKind::Release: return 0;
    case OpKind::Forward:
    case OpKind::Recompute:
    case OpKind::Backward:
    case OpKind::LossForward:
    case OpKind::LossBackward: return layers().seconds(op);
    default: return op.payloadCount * secondsOfOne(op);
    }
}

double OpCosts::hostSeconds(const Op& op) const
{
    switch (op.kind) {
    case OpKind::Allocate:
    case OpKind::Release: return 0;
    case OpKind::Forward:
    case OpKind::Recompute:
    case OpKind::Backward:
    case OpKind::LossForward:
    case OpKind::LossBackward: return layers().hostSeconds(op);
    default: return op.payloadCount * (isCollective(op.kind) ? m_host.collective(op.kind) : m_host.kernel());
    }
}

OpTimes opTimes(const Schedule& schedule, const OpCosts& costs)
{
    // Operations of a kind over the same payload and group recur, one a layer: each is worked out once.
    struct Known {
        OpKind kind = OpKind::Allocate;
        Phase phase = Phase::Init;
        GroupId group = -1;
        std::int32_t count = -1;
        bool ofLayer = false;
        double seconds = 0;
        bool isOf(const Op& op) const
        {
            return kind == op.kind && phase == op.phase && group == op.group && count == op.payloadCount &&
                   ofLayer == (op.layer >= 0);
        }
    };
    constexpr std::size_t kKinds = 4; // that one payload commonly occurs in: gathered, copied up, down, stepped
    std::vector<std::array<Known, kKinds>> known(schedule.sizes.payloads.size());
    OpTimes times;
    times.seconds.reserve(schedule.ops.size());
    times.hostSeconds.reserve(schedule.ops.size());
    for (const Op& op : schedule.ops) {
        const bool initial = op.phase == Phase::Init;
        times.hostSeconds.push_back(initial ? 0 : costs.hostSeconds(op));
        if (initial || op.payload < 0) {
            times.seconds.push_back(initial ? 0 : costs.seconds(op));
            continue;
        }
        auto& row = known[static_cast<std::size_t>(op.payload)];
        std::size_t place = 0;
        while (place + 1 < kKinds && row[place].count >= 0 && !row[place].isOf(op))
            ++place;
        if (!row[place].isOf(op))
            row[place] = {op.kind, op.phase, op.group, op.payloadCount, op.layer >= 0, costs.seconds(op)};
        times.seconds.push_back(row[place].seconds);
    }
    return times;
}

} // namespace shardwright
