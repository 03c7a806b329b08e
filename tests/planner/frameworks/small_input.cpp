#include "tests/planner/frameworks/small_input.hpp"

#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "planner/readers/traffic_sum.hpp"

namespace shardwright {

namespace {

Json configOf(const LlamaShape& shape)
{
    return {{"architectures", {"LlamaForCausalLM"}},
            {"model_type", "llama"},
            {"hidden_size", shape.hidden},
            {"num_hidden_layers", shape.blocks},
            {"num_attention_heads", shape.heads},
            {"num_key_value_heads", 1},
            {"head_dim", shape.headDim},
            {"intermediate_size", shape.ffn},
            {"vocab_size", shape.vocab},
            {"max_position_embeddings", 4096},
            {"tie_word_embeddings", shape.tied}};
}

template <typename Options, typename Change> Options with(Options options, Change change)
{
    change(options);
    return options;
}

} // namespace

Model llamaOf(const LlamaShape& shape)
{
    return modelFromJson(configOf(shape), "small", "test");
}

Model mixtralOf(const LlamaShape& shape, std::int64_t experts)
{
    Json config = configOf(shape);
    config["architectures"] = {"MixtralForCausalLM"};
    config["model_type"] = "mixtral";
    config["num_local_experts"] = experts;
    config["num_experts_per_tok"] = 2;
    return modelFromJson(config, "small-mixture", "test");
}

SmallInput::SmallInput(StrategyOptions options, int gpusPerNode, int nodes)
{
    strategy.options = std::move(options);
    cluster.gpusPerNode = gpusPerNode;
    cluster.nodes = nodes;
    training.sequenceLength = 16;
}

Traffic SmallInput::traffic() const
{
    return sumTraffic(schedule(), model.parameters(), cluster.gpusPerNode);
}

Fsdp1Options fsdp1(ShardingStrategy sharding)
{
    return with(Fsdp1Options{}, [&](Fsdp1Options& o) { o.sharding = sharding; });
}

const std::vector<std::pair<std::string, StrategyOptions>>& everyStrategy()
{
    using S = ShardingStrategy;
    using One = Fsdp1Options;
    using Two = Fsdp2Options;
    static const std::vector<std::pair<std::string, StrategyOptions>> all{
        {"ddp", DdpOptions{}},
        {"ddp view", with(DdpOptions{}, [](DdpOptions& o) { o.gradientAsBucketView = true; })},
        {"fsdp1 full", fsdp1(S::FullShard)},
        {"fsdp1 grad op", fsdp1(S::ShardGradOp)},
        {"fsdp1 no shard", fsdp1(S::NoShard)},
        {"fsdp1 hybrid", fsdp1(S::HybridShard)},
        {"fsdp1 hybrid zero2", fsdp1(S::HybridShardZero2)},
        {"fsdp1 post", with(One{}, [](One& o) { o.backwardPrefetch = BackwardPrefetch::Post; })},
        {"fsdp1 no prefetch", with(One{}, [](One& o) { o.backwardPrefetch = BackwardPrefetch::None; })},
        {"fsdp1 forward prefetch", with(One{}, [](One& o) { o.forwardPrefetch = true; })},
        {"fsdp1 unlimited", with(One{}, [](One& o) { o.limitAllGathers = false; })},
        {"fsdp1 offload", with(One{}, [](One& o) { o.offloadParams = true; })},
        {"fsdp1 grad op offload", with(fsdp1(S::ShardGradOp), [](One& o) { o.offloadParams = true; })},
        {"fsdp1 no shard offload", with(fsdp1(S::NoShard), [](One& o) { o.offloadParams = true; })},
        {"fsdp1 flat", with(One{}, [](One& o) { o.useOrigParams = false; })},
        {"fsdp1 reduce fp32", with(One{}, [](One& o) { o.reduceDtype = DType::Fp32; })},
        {"fsdp1 no wrap", with(One{}, [](One& o) { o.wrap = WrapPolicy::None; })},
        {"fsdp1 by size", with(One{},
                               [](One& o) {
                                   o.wrap = WrapPolicy::Size;
                                   o.minNumParams = 100;
                               })},
        {"fsdp2 full", Two{}},
        {"fsdp2 keeps", with(Two{}, [](Two& o) { o.reshardAfterForward = false; })},
        {"fsdp2 root", with(Two{}, [](Two& o) { o.separateHeadUnit = false; })},
        {"fsdp2 reshard 2", with(Two{}, [](Two& o) { o.reshardGroup = 2; })},
        {"fsdp2 hsdp", with(Two{}, [](Two& o) { o.replicate = 0; })},
        {"fsdp2 no shard", with(Two{}, [](Two& o) { o.noShard = true; })},
        {"fsdp2 offload", with(Two{}, [](Two& o) { o.offloadParams = true; })},
        {"fsdp2 offload pageable", with(Two{},
                                        [](Two& o) {
                                            o.offloadParams = true;
                                            o.pinMemory = false;
                                        })},
        {"fsdp2 no shard offload", with(Two{},
                                        [](Two& o) {
                                            o.noShard = true;
                                            o.offloadParams = true;
                                        })},
        {"fsdp2 forward prefetch", with(Two{}, [](Two& o) { o.forwardPrefetch = true; })},
        {"fsdp2 reduce fp32", with(Two{}, [](Two& o) { o.reduceDtype = DType::Fp32; })},
        {"fsdp2 last block", with(Two{}, [](Two& o) { o.keepLastBlock = true; })},
        {"fsdp2 children", with(Two{}, [](Two& o) { o.checkpointChildren = true; })},
        {"native 0", with(NativeOptions{}, [](NativeOptions& o) { o.stage = 0; })},
        {"native 1", with(NativeOptions{}, [](NativeOptions& o) { o.stage = 1; })},
        {"native 2", with(NativeOptions{}, [](NativeOptions& o) { o.stage = 2; })},
        {"native 3", NativeOptions{}},
        {"native 3 offload", with(NativeOptions{}, [](NativeOptions& o) { o.offloadOptimizer = true; })},
    };
    return all;
}

const std::vector<std::pair<std::string, StrategyOptions>>& everyDeepSpeed()
{
    static const auto all = [] {
        // Thresholds as small as the model, so that buckets fill up and parameters are let go of.
        const auto small = [](int stage, auto change) {
            DeepSpeedOptions o;
            o.stage = stage;
            o.reduceBucketSize = 150;
            o.prefetchBucketSize = 100;
            o.paramPersistenceThreshold = 10;
            o.maxReuseDistance = 200;
            o.subGroupSize = 50;
            change(o);
            return o;
        };
        using O = DeepSpeedOptions;
        using Device = OffloadDevice;
        std::vector<std::pair<std::string, StrategyOptions>> list;
        const auto add = [&](std::string name, int stage, auto change) {
            list.emplace_back("deepspeed " + name, small(stage, change));
        };
        for (const int stage : {0, 1, 2, 3}) {
            const std::string name = std::to_string(stage);
            add(name, stage, [](O&) {});
            add(name + " overlap", stage, [](O& o) { o.overlapComm = true; });
            add(name + " no overlap", stage, [](O& o) { o.overlapComm = false; });
            add(name + " fp32 accumulation", stage, [](O& o) { o.gradAccumDtype = DType::Fp32; });
            if (stage == 0)
                continue;
            add(name + " scattered", stage, [](O& o) { o.contiguousGradients = false; });
            add(name + " all-reduce", stage, [](O& o) { o.reduceScatter = false; });
            for (const bool owners : {true, false})
                for (const bool overlap : {true, false}) {
                    if (stage == 3)
                        continue;
                    const std::string kind =
                        (owners ? " to owners" : " together") + std::string(overlap ? " overlap" : "");
                    const auto reduced = [&](O& o) {
                        o.useMultiRankBucketAllreduce = !owners;
                        o.overlapComm = overlap;
                    };
                    if (owners)
                        add(name + kind, stage, reduced);
                    add(name + kind + " fp32", stage, [&](O& o) {
                        reduced(o);
                        o.communicationDtype = DType::Fp32;
                    });
                }
            for (const bool pinned : {true, false})
                for (const bool overlap : {true, false})
                    add(name + " offload" + (pinned ? "" : " pageable") + (overlap ? " overlap" : ""), stage,
                        [&](O& o) {
                            o.offloadOptimizer = Device::Cpu;
                            o.pinMemory = pinned;
                            o.overlapComm = overlap;
                        });
        }
        add("3 offload all", 3, [](O& o) { o.offloadOptimizer = o.offloadParam = Device::Cpu; });
        add("3 offload ratio", 3, [](O& o) {
            o.offloadOptimizer = Device::Cpu;
            o.offloadRatio = 0.5;
        });
        for (const bool pipelined : {false, true})
            add(pipelined ? "3 nvme pipelined" : "3 nvme", 3, [&](O& o) {
                o.offloadOptimizer = o.offloadParam = Device::Nvme;
                o.pipelineRead = o.pipelineWrite = pipelined;
            });
        add("3 qwz", 3, [](O& o) { o.quantizedWeights = true; });
        add("3 qgz", 3, [](O& o) { o.quantizedGradients = true; });
        add("3 hpz", 3, [](O& o) { o.hpzPartitionSize = 4; });
        add("3 zero++", 3, [](O& o) {
            o.quantizedWeights = o.quantizedGradients = true;
            o.hpzPartitionSize = 4;
        });
        add("3 mics", 3, [](O& o) { o.micsShardSize = 4; });
        return list;
    }();
    return all;
}

} // namespace shardwright
