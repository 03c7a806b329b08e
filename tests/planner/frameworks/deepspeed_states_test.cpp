// What stays between steps: sizes worked out by hand, and the ZeRO paper's table.

#include <gtest/gtest.h>

#include "tests/planner/frameworks/deepspeed_support.hpp"

namespace shardwright::deepspeed_test {
namespace {

// ZeRO (arXiv 1910.02054) fig. 1: 7.5 billion parameters on 64 GPUs, fp16 with fp32 Adam.
TEST(DeepSpeedStates, ZeroPaperFigure1)
{
    Question question;
    question.model = readModel("zero-7.5b");
    question.cluster.nodes = 8;
    question.training.precision.mixed = DType::Fp16;
    const auto states = [&](int stage) {
        question.options().stage = stage;
        return question.rules()->modelStates().total().asDouble() / kGB;
    };
    EXPECT_NEAR(states(0), 120, 1.2);
    EXPECT_NEAR(states(1), 31.4, 0.4);
    EXPECT_NEAR(states(2), 16.6, 0.2);
    EXPECT_NEAR(states(3), 1.9, 0.05);
}

// 8 ranks: the flat buffer is 7,248 = 453 x 16 elements, a partition 906.
TEST(DeepSpeedStates, Zero2HoldsFlatParametersAndAPartition)
{
    Question question;
    question.options().stage = 2;
    const std::int64_t flat = 2 * kTinyParameters;
    const std::int64_t partition = (4 + 8) * (kTinyParameters / 8);
    EXPECT_EQ(question.memory().gpuHeld, Bytes(flat + partition));
    // Between the last micro-step and the step: no moments yet, and the gradients of the tensors that touch a
    // partition. The second partition, elements 906 to 1811, touches most: embedding, norm, q, k, v and the first 4
    // elements of o.
    EXPECT_EQ(question.memory().gpuHeldBeforeFirstStep,
              question.memory().gpuHeld - Bytes(8 * 906) + Bytes(2 * (1024 + 16 + 4 * 256)));
}

// stage_1_and_2.py __init__ flattens on the GPU when its free memory takes the copy, and by way of the host when not.
TEST(DeepSpeedStates, Zero2FlattensOnTheHostWhatDoesNotFitTwice)
{
    Question question;
    question.options().stage = 2;
    EXPECT_EQ(question.memory().gpuInitPeak, Bytes(2 * 2 * kTinyParameters));
    question.cluster.gpu.memory.value = 1000; // then the most is flat buffer, master partition and the step's zeros
    EXPECT_EQ(question.memory().gpuInitPeak, Bytes(2 * kTinyParameters + (4 + 4) * (kTinyParameters / 8)));
}

TEST(DeepSpeedStates, FlatBufferIsPaddedToTwiceTheRanks)
{
    Question question;
    question.options().stage = 1;
    question.cluster.gpusPerNode = 5; // 7,248 -> 7,250 = 10 x 725
    EXPECT_EQ(question.rules()->modelStates().masterParameters, Bytes(4 * 1450));
    EXPECT_EQ(question.rules()->modelStates().parameters, Bytes(2 * 7250));
}

// Every parameter is padded on its own: 16-element norms over 5 ranks are 4 elements each, and so on.
TEST(DeepSpeedStates, Zero3PadsEveryParameter)
{
    Question question;
    question.cluster.gpusPerNode = 5;
    const std::int64_t block = 4 * 52 + 3 * 103 + 2 * 4; // ceil(256/5), ceil(512/5), ceil(16/5)
    const std::int64_t shard = 2 * 205 + 2 * block + 4;  // ceil(1024/5)
    const ModelStates states = question.rules()->modelStates();
    EXPECT_EQ(states.parameters, Bytes(2 * shard));
    EXPECT_EQ(states.masterParameters, Bytes(4 * shard));
    EXPECT_EQ(states.gradients, Bytes(2 * shard));
    EXPECT_EQ(states.optimizerStates, Bytes(8 * shard));
    EXPECT_EQ(question.memory().gpuHeld, Bytes(16 * shard + 2 * 4000)); // and the bucket
}

TEST(DeepSpeedStates, PersistentParametersAreHeldWhole)
{
    Question question;
    question.options().paramPersistenceThreshold = 16;
    const Bytes all = question.memory().gpuHeld;
    question.options().paramPersistenceThreshold = 15;
    EXPECT_EQ(all - question.memory().gpuHeld, Bytes(2 * 5 * 16)); // five norms
    question.options().paramPersistenceThreshold = 16;
    question.options().modelPersistenceThreshold = 40;
    EXPECT_EQ(all - question.memory().gpuHeld, Bytes(2 * 3 * 16)); // only two of them fit into 40 elements
}

TEST(DeepSpeedStates, LowPrecisionMasterAndStates)
{
    Question question;
    question.options().stage = 2;
    question.options().bf16MasterWeightsAndGrads = true;
    question.options().bf16OptimizerStates = true;
    const ModelStates states = question.rules()->modelStates();
    EXPECT_EQ(states.masterParameters, Bytes(2 * 906));
    EXPECT_EQ(states.optimizerStates, Bytes(4 * 906));
}

// BF16_Optimizer at stage 0: whole bf16 parameters and gradients, whole fp32 gradients, sharded master and moments.
TEST(DeepSpeedStates, Bf16AtStage0ShardsTheOptimizer)
{
    Question question;
    question.options().stage = 0;
    EXPECT_EQ(question.rules()->modelStates().total(), Bytes((2 + 2 + 4) * kTinyParameters + 12 * 906));
    EXPECT_EQ(question.memory().gpuHeld, question.rules()->modelStates().total());
    question.options().stage = 1;
    question.options().gradAccumDtype = DType::Fp32;
    EXPECT_EQ(question.rules()->modelStates().total(), Bytes((2 + 2 + 4) * kTinyParameters + 12 * 906));
}

TEST(DeepSpeedStates, Fp32TrainingKeepsAMasterCopyUnderZero)
{
    Question question;
    question.training.precision.mixed.reset();
    question.options().stage = 2;
    EXPECT_EQ(question.memory().gpuHeld, Bytes(4 * kTinyParameters + 12 * 906));
    question.options().stage = 0;
    EXPECT_EQ(question.memory().gpuHeld, Bytes(12 * kTinyParameters));
}

TEST(DeepSpeedStates, AdaptersAloneAreStepped)
{
    Question question;
    Lora lora;
    lora.rank = 2;
    question.training.lora = lora;
    question.model = applyLora(tinyLlama(), lora, "test", "");
    // 4 x (2 x 16 + 16 x 2) for attention, 3 x (2 x 16 + 2 x 32) for the MLP, in two blocks; all a multiple of 16
    const std::int64_t trained = 2 * (4 * 64 + 3 * 96);
    ASSERT_EQ(question.model.trainableParameters(), trained);
    question.options().stage = 2;
    EXPECT_EQ(question.memory().gpuHeld, Bytes(2 * (kTinyParameters + trained) + 12 * trained / 8));
    // Flattening copies the adapters; the frozen base stands once: 2 x (7,248 + 2 x 1,088) are more than the step's
    // zeros
    EXPECT_EQ(question.memory().gpuInitPeak, Bytes(2 * (kTinyParameters + 2 * trained)));
    question.options().stage = 3;
    question.options().reduceBucketSize = 100;
    const std::int64_t shardOfAll = (kTinyParameters + trained) / 8;
    EXPECT_EQ(question.memory().gpuHeld, Bytes(2 * shardOfAll + 14 * trained / 8 + 2 * 100));
    question.training.lora->baseDtype = DType::Nf4; // half a byte an element of the frozen base
    EXPECT_EQ(question.memory().gpuHeld, Bytes(kTinyParameters / 8 / 2 + 16 * trained / 8 + 2 * 100));
}

TEST(DeepSpeedStates, OneBitAdamKeepsItsErrors)
{
    Question question;
    question.options().stage = 0;
    question.training.precision.mixed = DType::Fp16;
    const Bytes adam = question.memory().gpuHeld;
    EXPECT_EQ(adam, Bytes((2 + 4 + 8) * kTinyParameters));
    question.training.optimizer = Optimizer::OneBitAdam;
    const std::int64_t padded = roundUp(kTinyParameters, 8 * 8); // whole bytes of signs on each of 8 ranks
    EXPECT_EQ(question.memory().gpuHeld - adam, Bytes(4 * padded + 4 * padded / 8));
}

} // namespace
} // namespace shardwright::deepspeed_test
