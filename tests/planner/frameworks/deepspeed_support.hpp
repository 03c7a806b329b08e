#pragma once

// What the DeepSpeed tests share: a question, and its answer by every reader.

#include "core/catalogue.hpp"
#include "core/cluster_file.hpp"
#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "planner/frameworks/rules.hpp"
#include "planner/readers/memory_replay.hpp"
#include "planner/readers/traffic_sum.hpp"

namespace shardwright::deepspeed_test {

/// Llama of 7,248 parameters: embedding and head 64 x 16, two blocks of 4 x 16 x 16 + 3 x 16 x 32 + 2 x 16, final norm.
inline Model tinyLlama()
{
    const Json config = {{"model_type", "llama"},
                         {"hidden_size", 16},
                         {"num_hidden_layers", 2},
                         {"num_attention_heads", 2},
                         {"num_key_value_heads", 2},
                         {"intermediate_size", 32},
                         {"vocab_size", 64},
                         {"tie_word_embeddings", false},
                         {"max_position_embeddings", 64}};
    return modelFromJson(config, "tiny-llama", "test", "");
}
constexpr std::int64_t kTinyParameters = 7248;

struct Question {
    Model model = tinyLlama();
    Cluster cluster = readCluster("dgx-a100-80gb");
    Training training;
    Strategy strategy{"test", DeepSpeedOptions{}};

    Question()
    {
        training.sequenceLength = 8;
        options().paramPersistenceThreshold = 0;
        options().reduceBucketSize = 4000;
    }
    DeepSpeedOptions& options() { return std::get<DeepSpeedOptions>(strategy.options); }
    PlanInput input() const { return {model, cluster, training, strategy}; }
    std::unique_ptr<FrameworkRules> rules() const { return makeDeepSpeedRules(input()); }
    MemoryReplay memory() const { return replayMemory(rules()->emit(), false); }
    Traffic traffic() const { return sumTraffic(rules()->emit(), model.parameters(), cluster.gpusPerNode); }
};

/// Bytes of all live buffers of one name at a peak.
inline Bytes liveBytes(const SizeTable& sizes, const PlacePeak& peak, Place place, std::string_view name)
{
    Bytes total;
    for (const LiveItem& item : liveItems(sizes, peak.liveCounts, place))
        if (item.name == name)
            total += item.bytes();
    return total;
}

} // namespace shardwright::deepspeed_test
