#include <charconv>
#include <functional>

#include "core/scenario_file.hpp"

namespace shardwright {

namespace {

Fsdp1Options fsdp1(ShardingStrategy sharding)
{
    Fsdp1Options options;
    options.sharding = sharding;
    return options;
}

Fsdp2Options fsdp2(bool reshardAfterForward, std::int64_t replicate = 1)
{
    Fsdp2Options options;
    options.reshardAfterForward = reshardAfterForward;
    options.replicate = replicate;
    return options;
}

DeepSpeedOptions deepSpeed(int stage, OffloadDevice optimizer = OffloadDevice::None,
                           OffloadDevice param = OffloadDevice::None)
{
    DeepSpeedOptions options;
    options.stage = stage;
    options.offloadOptimizer = optimizer;
    options.offloadParam = param;
    return options;
}

NativeOptions native(int stage)
{
    NativeOptions options;
    options.stage = stage;
    return options;
}

struct Predefined {
    std::string name;
    std::function<StrategyOptions(int gpusPerNode)> options;
};

const std::vector<Predefined>& predefinedStrategies()
{
    using Sharding = ShardingStrategy;
    using Device = OffloadDevice;
    constexpr std::int64_t kOneReplicaPerNode = 0;
    static const std::vector<Predefined> table{
        {"ddp", [](int) { return DdpOptions{}; }},
        {"fsdp1-full-shard", [](int) { return fsdp1(Sharding::FullShard); }},
        {"fsdp1-shard-grad-op", [](int) { return fsdp1(Sharding::ShardGradOp); }},
        {"fsdp1-no-shard", [](int) { return fsdp1(Sharding::NoShard); }},
        {"fsdp1-hybrid-shard", [](int) { return fsdp1(Sharding::HybridShard); }},
        {"fsdp1-hybrid-shard-zero2", [](int) { return fsdp1(Sharding::HybridShardZero2); }},
        {"fsdp1-full-shard-offload",
         [](int) {
             Fsdp1Options options = fsdp1(Sharding::FullShard);
             options.offloadParams = true;
             return options;
         }},
        {"fsdp2-full-shard", [](int) { return fsdp2(true); }},
        {"fsdp2-shard-grad-op", [](int) { return fsdp2(false); }},
        {"fsdp2-no-shard",
         [](int) {
             Fsdp2Options options = fsdp2(true);
             options.noShard = true;
             return options;
         }},
        {"fsdp2-hybrid-shard", [](int) { return fsdp2(true, kOneReplicaPerNode); }},
        {"fsdp2-hybrid-shard-zero2", [](int) { return fsdp2(false, kOneReplicaPerNode); }},
        {"fsdp2-full-shard-offload",
         [](int) {
             Fsdp2Options options = fsdp2(true);
             options.offloadParams = true;
             return options;
         }},
        {"deepspeed-zero0", [](int) { return deepSpeed(0); }},
        {"deepspeed-zero1", [](int) { return deepSpeed(1); }},
        {"deepspeed-zero2", [](int) { return deepSpeed(2); }},
        {"deepspeed-zero3", [](int) { return deepSpeed(3); }},
        {"deepspeed-zero1-offload-optimizer-cpu", [](int) { return deepSpeed(1, Device::Cpu); }},
        {"deepspeed-zero2-offload-optimizer-cpu", [](int) { return deepSpeed(2, Device::Cpu); }},
        {"deepspeed-zero3-offload-optimizer-cpu", [](int) { return deepSpeed(3, Device::Cpu); }},
        {"deepspeed-zero3-offload-cpu", [](int) { return deepSpeed(3, Device::Cpu, Device::Cpu); }},
        {"deepspeed-zero3-offload-nvme", [](int) { return deepSpeed(3, Device::Nvme, Device::Nvme); }},
        {"deepspeed-zeropp",
         [](int gpusPerNode) {
             DeepSpeedOptions options = deepSpeed(3);
             options.quantizedWeights = true;
             options.quantizedGradients = true;
             options.hpzPartitionSize = gpusPerNode;
             return options;
         }},
        {"deepspeed-mics",
         [](int gpusPerNode) {
             DeepSpeedOptions options = deepSpeed(3);
             options.micsShardSize = gpusPerNode;
             return options;
         }},
        {"megatron",
         [](int) {
             MegatronOptions options;
             options.distributedOptimizer = options.overlapParamGather = false;
             return options;
         }},
        {"megatron-distributed-optimizer", [](int) { return MegatronOptions{}; }},
        {"native-zero0", [](int) { return native(0); }},
        {"native-zero1", [](int) { return native(1); }},
        {"native-zero2", [](int) { return native(2); }},
        {"native-zero3", [](int) { return native(3); }}};
    return table;
}

/// The number at the front of `text`, which loses it; 0 where there is none.
std::int64_t takeNumber(std::string_view& text)
{
    std::int64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || number < 1)
        return 0;
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    return number;
}

bool take(std::string_view& text, std::string_view word)
{
    if (text.substr(0, word.size()) != word)
        return false;
    text.remove_prefix(word.size());
    return true;
}

/// What stands behind a predefined name and is an option of its framework: "-8" (ranks of a shard group),
/// "-qwz-hpz-qgz" or some of them, "-offload...", in this order. Each adds what the name has not said; what it cannot
/// add stays.
struct TakeOptions {
    std::string_view& text;
    int gpusPerNode;

    void operator()(DdpOptions& /*options*/) const {}
    void operator()(MegatronOptions& /*options*/) const {}

    void operator()(Fsdp1Options& options) const
    {
        if (options.sharding == ShardingStrategy::HybridShard || options.sharding == ShardingStrategy::HybridShardZero2)
            group(options.shardGroup);
        if (!options.offloadParams)
            options.offloadParams = take(text, "-offload");
    }

    void operator()(Fsdp2Options& options) const
    {
        if (options.replicate == 0)
            groupOfANode();
        if (!options.offloadParams)
            options.offloadParams = take(text, "-offload");
    }

    void operator()(DeepSpeedOptions& options) const
    {
        if (options.micsShardSize > 0)
            group(options.micsShardSize);
        if (options.offloadOptimizer != OffloadDevice::None)
            return;
        if (options.stage == 3) {
            if (!options.quantizedWeights)
                options.quantizedWeights = take(text, "-qwz");
            if (options.hpzPartitionSize <= 1 && take(text, "-hpz"))
                options.hpzPartitionSize = gpusPerNode;
            if (!options.quantizedGradients)
                options.quantizedGradients = take(text, "-qgz");
            if (take(text, "-offload-cpu"))
                options.offloadOptimizer = options.offloadParam = OffloadDevice::Cpu;
            else if (take(text, "-offload-nvme"))
                options.offloadOptimizer = options.offloadParam = OffloadDevice::Nvme;
        }
        if (take(text, "-offload-optimizer-cpu"))
            options.offloadOptimizer = OffloadDevice::Cpu;
    }

    void operator()(NativeOptions& options) const { options.offloadOptimizer = take(text, "-offload-optimizer-cpu"); }

private:
    bool group(std::int64_t& ranks) const
    {
        std::string_view rest = text;
        if (!take(rest, "-"))
            return false;
        const std::int64_t number = takeNumber(rest);
        if (number == 0)
            return false;
        ranks = number;
        text = rest;
        return true;
    }

    /// FSDP2 is told replicas and not ranks: of a node there is one, however many nodes, where nothing splits the
    /// model.
    void groupOfANode() const
    {
        const std::string_view before = text;
        std::int64_t ranks = 0;
        if (group(ranks) && ((gpusPerNode > 0 && ranks != gpusPerNode) || (!text.empty() && text != "-offload")))
            text = before;
    }
};

/// "-tp8sp-pp4v2-cp2-ep8-etp1", in this order, each part once or not at all. Nothing where it is anything else.
std::optional<Parallelism> parallelismFromSuffix(std::string_view text)
{
    Parallelism parallelism;
    bool right = true;
    const auto part = [&](std::string_view word, std::int64_t& ranks) {
        if (!take(text, word))
            return false;
        ranks = takeNumber(text);
        right = right && ranks > 0;
        return true;
    };
    if (part("-tp", parallelism.tensor))
        parallelism.sequenceParallel = take(text, "sp");
    if (part("-pp", parallelism.pipeline) && part("v", parallelism.virtualStages))
        parallelism.schedule = PipelineSchedule::Interleaved;
    if (part("-cp", parallelism.context)) {
        if (take(text, "ag"))
            parallelism.exchange = ContextExchange::AllGather;
        else if (take(text, "u"))
            parallelism.exchange = ContextExchange::Ulysses;
    }
    part("-ep", parallelism.expert);
    part("-etp", parallelism.expertTensor);
    return right && text.empty() ? std::optional(parallelism) : std::nullopt;
}

} // namespace

std::vector<std::string> strategyNames()
{
    std::vector<std::string> names;
    for (const Predefined& entry : predefinedStrategies())
        names.push_back(entry.name);
    return names;
}

std::optional<Strategy> strategyByName(const std::string& name, int gpusPerNode)
{
    for (const Predefined& entry : predefinedStrategies())
        if (entry.name == name)
            return Strategy{name, entry.options(gpusPerNode)};
    // The longest name that it begins with, its options, and how the model is split besides.
    const Predefined* longest = nullptr;
    for (const Predefined& entry : predefinedStrategies())
        if (name.rfind(entry.name + "-", 0) == 0 && (longest == nullptr || entry.name.size() > longest->name.size()))
            longest = &entry;
    if (longest == nullptr)
        return std::nullopt;
    std::string_view rest = std::string_view(name).substr(longest->name.size());
    constexpr int kSomeNode = 8; // where only the name is in question
    Strategy strategy{name, longest->options(gpusPerNode > 0 ? gpusPerNode : kSomeNode)};
    std::visit(TakeOptions{rest, gpusPerNode}, strategy.options);
    const auto parallelism = parallelismFromSuffix(rest);
    if (!parallelism)
        return std::nullopt;
    strategy.parallelism = *parallelism;
    return strategy;
}

} // namespace shardwright
