#include "core/json_fields.hpp"
#include "core/scenario_file.hpp"

namespace shardwright {

namespace {

// Bounds that leave room: tokens of a step (sequence x micro-batch x accumulation) stay inside 64 bits.
constexpr std::int64_t kLongestSequence = 1000000000;
constexpr std::int64_t kLargestBatch = 1000000;
constexpr std::int64_t kLargestRank = 10000000;

const std::vector<DType> kMixedTypes{DType::Bf16, DType::Fp16};
const std::vector<DType> kLoadTypes{DType::Fp32, DType::Bf16, DType::Fp16};
const std::vector<DType> kBaseTypes{DType::Fp32, DType::Bf16, DType::Fp16, DType::Int8, DType::Int4, DType::Nf4};

/// The fields of a training description; the one list that reading and writing share.
template <typename Fields, typename T> void visitTraining(Fields& fields, T& training)
{
    fields.field("sequence_length", training.sequenceLength, 1, kLongestSequence);
    fields.field("micro_batch", training.microBatch, 1, kLargestBatch);
    fields.field("gradient_accumulation", training.gradientAccumulation, 1, kLargestBatch);
    fields.object("precision", [&](auto& members) {
        members.oneOfOr("no", "mixed", training.precision.mixed, kMixedTypes);
        members.oneOf("load", training.precision.load, kLoadTypes);
        members.field("fp8", training.precision.fp8);
        members.field("fp8_scaling", training.precision.fp8Scaling);
    });
    fields.field("optimizer", training.optimizer);
    fields.field("activation_checkpointing", training.checkpointing);
    fields.field("checkpoint_every", training.checkpointEvery, 1);
    fields.field("checkpoint_segment", training.checkpointSegment, 1);
    fields.field("checkpoint_early_stop", training.checkpointEarlyStop);
    fields.field("attention", training.attention);
    fields.field("implementation", training.implementation);
    fields.field("loss", training.loss);
    fields.field("compile", training.compile);
    fields.field("fused_norm", training.fusedNorm);
    fields.field("holds_logits", training.holdsLogits);
    fields.field("fused_optimizer", training.fusedOptimizer);
    fields.field("expandable_segments", training.expandableSegments);
    fields.field("launch_blocking", training.launchBlocking);
    fields.field("deterministic", training.deterministic);
    fields.field("host_threads", training.hostThreads, 0);
    fields.zeroIsOff("gradient_clipping", training.gradientClipping, 1e30);
    fields.optionalObject("lora", training.lora, [](auto& members, auto& lora) {
        members.field("rank", lora.rank, 1, kLargestRank);
        members.field("target_modules", lora.targetModules);
        members.field("train_embeddings", lora.trainEmbeddings);
        members.field("train_norms", lora.trainNorms);
        members.oneOf("adapter_dtype", lora.adapterDtype, kLoadTypes);
        members.oneOf("base_dtype", lora.baseDtype, kBaseTypes);
    });
}

void checkCombinations(const JsonCursor& cursor, const Training& training)
{
    if (training.checkpointEvery > 1 && training.checkpointing != Checkpointing::Full)
        cursor.complain("\"checkpoint_every\" without full activation checkpointing",
                        "\"activation_checkpointing\": \"full\", or no \"checkpoint_every\"");
    if (training.checkpointSegment > 1 && training.checkpointing != Checkpointing::Full)
        cursor.complain("\"checkpoint_segment\" without full activation checkpointing",
                        "\"activation_checkpointing\": \"full\", or no \"checkpoint_segment\"");
    if (training.checkpointSegment > 1 && training.checkpointEvery > 1)
        cursor.complain("\"checkpoint_segment\" beside \"checkpoint_every\"",
                        "one of the two: segments cover every block");
    const Precision& precision = training.precision;
    const bool computesInBf16 = precision.mixed == DType::Bf16 || (!precision.mixed && precision.load == DType::Bf16);
    if (precision.fp8 && !computesInBf16)
        cursor.complain("\"fp8\" without bf16 around it", "\"mixed\": \"bf16\": float8 linear layers take bf16 input");
    if (!precision.fp8 && precision.fp8Scaling != Float8Scaling::Tensorwise)
        cursor.complain("\"fp8_scaling\" without \"fp8\"", "\"fp8\": true, or no \"fp8_scaling\"");
}

} // namespace

Training trainingFromJson(const JsonCursor& cursor)
{
    Training training;
    if (!cursor.expectObject())
        return training;
    const std::size_t findingsBefore = cursor.findings().all().size();
    FieldReader fields(cursor);
    visitTraining(fields, training);
    fields.finish();
    if (cursor.findings().all().size() == findingsBefore)
        checkCombinations(cursor, training);
    return training;
}

Json toJson(const Training& training)
{
    FieldWriter fields;
    visitTraining(fields, training);
    return fields.take();
}

} // namespace shardwright
