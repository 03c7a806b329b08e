#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "core/json_cursor.hpp"
#include "core/scenario_file.hpp"

namespace shardwright {
namespace {

Training readText(const std::string& text, std::vector<Finding>& found)
{
    const Json json = parseJson(text, "t.json");
    Findings findings("t.json");
    const Training training = trainingFromJson(JsonCursor(json, findings));
    found = findings.all();
    return training;
}

Training readSound(const std::string& text)
{
    std::vector<Finding> findings;
    const Training training = readText(text, findings);
    EXPECT_TRUE(findings.empty()) << findings[0].text();
    return training;
}

TEST(TrainingFile, AbsentMembersKeepTheirDefaults)
{
    const Training training = readSound(R"({"sequence_length": 512})");
    EXPECT_EQ(training.sequenceLength, 512);
    EXPECT_EQ(training.microBatch, Training{}.microBatch);
    EXPECT_EQ(training.precision.mixed, DType::Bf16);
    EXPECT_EQ(training.gradientClipping, 1.0);
    EXPECT_FALSE(training.lora);
}

TEST(TrainingFile, NoMixedPrecisionAndNoClippingCanBeSaid)
{
    const Training training = readSound(R"({"precision": {"mixed": "no", "load": "bf16"}, "gradient_clipping": 0})");
    EXPECT_FALSE(training.precision.mixed);
    EXPECT_EQ(training.precision.load, DType::Bf16);
    EXPECT_FALSE(training.gradientClipping);
}

TEST(TrainingFile, AnEmptyLoraObjectSwitchesLoraOn)
{
    const Training training = readSound(R"({"lora": {}})");
    ASSERT_TRUE(training.lora);
    EXPECT_EQ(training.lora->rank, Lora{}.rank);
}

TEST(TrainingFile, TellsEveryMistakeAtOnce)
{
    std::vector<Finding> findings;
    readText(R"({"sequence_length": 0, "micro_batch": "1", "optimiser": "adamw", "optimizer": "adamax",
                 "precision": {"mixed": "fp32", "load": "nf4"}, "lora": {"rank": 0, "target_modules": "q_proj"}})",
             findings);
    const std::string text = findings.empty() ? std::string() : InputError(findings).what();
    for (const char* expected :
         {"/sequence_length: is 0", "/micro_batch: is \"1\"", "/optimiser: is not a known key; expected \"optimizer\"",
          "/optimizer: \"adamax\" is not known",
          "/precision/mixed: \"fp32\" is not possible here; expected bf16 or fp16", "/precision/load: \"nf4\"",
          "/lora/rank: is 0", "/lora/target_modules: is \"q_proj\""})
        EXPECT_NE(text.find(expected), std::string::npos) << expected << "\nin\n" << text;
}

TEST(TrainingFile, RejectsCombinationsThatMeanNothing)
{
    std::vector<Finding> findings;
    readText(R"({"checkpoint_every": 2, "precision": {"mixed": "fp16", "fp8": true}})", findings);
    EXPECT_EQ(findings.size(), 2U);
    readText(R"({"precision": {"fp8_scaling": "rowwise"}})", findings);
    ASSERT_EQ(findings.size(), 1U);
    EXPECT_NE(findings[0].text().find("\"fp8_scaling\" without \"fp8\""), std::string::npos) << findings[0].text();
    readText(R"({"checkpoint_every": 2, "activation_checkpointing": "full"})", findings);
    EXPECT_TRUE(findings.empty());
}

TEST(TrainingFile, TakesALongSequence)
{
    EXPECT_EQ(readSound(R"({"sequence_length": 1e7, "micro_batch": 4096})").tokensPerMicroBatch(), 40960000000);
}

template <typename E> rc::Gen<E> anyOf()
{
    std::vector<E> values;
    for (const auto& entry : EnumNames<E>::table)
        values.push_back(entry.first);
    return rc::gen::elementOf(values);
}

Lora anyLora()
{
    Lora lora;
    lora.rank = *rc::gen::inRange<std::int64_t>(1, 1000);
    lora.targetModules = *rc::gen::container<std::vector<std::string>>(rc::gen::element<std::string>("q_proj", "a\"b"));
    lora.trainEmbeddings = *rc::gen::arbitrary<bool>();
    lora.trainNorms = *rc::gen::arbitrary<bool>();
    lora.adapterDtype = *rc::gen::element(DType::Fp32, DType::Bf16, DType::Fp16);
    if (*rc::gen::arbitrary<bool>())
        lora.baseDtype = *rc::gen::element(DType::Nf4, DType::Int8, DType::Bf16);
    return lora;
}

Training anyTraining()
{
    Training training;
    training.sequenceLength = *rc::gen::inRange<std::int64_t>(1, 10000001);
    training.microBatch = *rc::gen::inRange<std::int64_t>(1, 1000);
    training.gradientAccumulation = *rc::gen::inRange<std::int64_t>(1, 1000);
    training.precision.mixed = *rc::gen::element<std::optional<DType>>(DType::Bf16, DType::Fp16, std::nullopt);
    training.precision.load = *rc::gen::element(DType::Fp32, DType::Bf16, DType::Fp16);
    training.precision.fp8 = training.precision.mixed == DType::Bf16 && *rc::gen::arbitrary<bool>();
    if (training.precision.fp8)
        training.precision.fp8Scaling = *anyOf<Float8Scaling>();
    training.optimizer = *anyOf<Optimizer>();
    training.checkpointing = *anyOf<Checkpointing>();
    if (training.checkpointing == Checkpointing::Full)
        training.checkpointEvery = *rc::gen::inRange(1, 9);
    training.checkpointEarlyStop = *rc::gen::arbitrary<bool>();
    training.attention = *anyOf<Attention>();
    training.implementation = *anyOf<Implementation>();
    training.loss = *anyOf<LossKind>();
    training.compile = *rc::gen::arbitrary<bool>();
    training.fusedNorm = *rc::gen::arbitrary<bool>();
    training.holdsLogits = *rc::gen::arbitrary<bool>();
    training.fusedOptimizer = *rc::gen::arbitrary<bool>();
    training.launchBlocking = *rc::gen::arbitrary<bool>();
    training.deterministic = *rc::gen::arbitrary<bool>();
    training.hostThreads = *rc::gen::inRange(0, 129);
    training.gradientClipping = *rc::gen::element<std::optional<double>>(1.0, 0.3, std::nullopt);
    if (*rc::gen::arbitrary<bool>())
        training.lora = anyLora();
    return training;
}

RC_GTEST_PROP(TrainingFile, SurvivesWritingAndReading, ())
{
    const Training written = anyTraining();
    const Json json = toJson(written);
    std::vector<Finding> findings;
    const Training read = readText(json.dump(), findings);
    RC_ASSERT(findings.empty());
    RC_ASSERT(toJson(read) == json);
    RC_ASSERT(read.precision.mixed == written.precision.mixed);
    RC_ASSERT(read.gradientClipping == written.gradientClipping);
    RC_ASSERT(read.lora.has_value() == written.lora.has_value());
}

} // namespace
} // namespace shardwright
