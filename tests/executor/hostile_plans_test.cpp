#include "tests/executor/hostile_plans.hpp"

#include <map>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "core/plan_file.hpp"
#include "executor/engine/rank_executor.hpp"
#include "tests/paths.hpp"

namespace shardwright {

namespace {

std::string textOf(const std::string& name)
{
    return readTextFile(inSource("scenarios/validation/" + name + ".plan.json"));
}

std::string failure(const std::string& text)
{
    try {
        planFromText(text, "plan.json");
    } catch (const InputError& error) {
        return error.what();
    }
    return "";
}

TEST(HostilePlans, EndWithACauseAndNothingElse)
{
    std::map<Fate, int> fates;
    std::mt19937_64 random(20240807);
    for (const char* name : {"ddp-4-ranks", "fsdp1-hybrid-shard", "fsdp2-full-shard-8-ranks", "fsdp1-offload",
                             "zero2-buckets", "zero3-qwz", "native-zero2", "checkpointing-to-host"}) {
        const Json body = Json::parse(textOf(name)).at("plan");
        ASSERT_EQ(tryPlan(sealedPlan(body)).fate, Fate::CarriedOut) << name << tryPlan(sealedPlan(body)).cause;
        for (int i = 0; i < 60; ++i) {
            const Tried tried = tryPlan(sealedPlan(mutatedPlan(body, random)));
            ++fates[tried.fate];
            const bool refused = tried.fate != Fate::CarriedOut && tried.fate != Fate::TooLarge;
            EXPECT_EQ(refused, refused && !tried.cause.empty());
        }
    }
    // Changes that only the reader meets would test the reader alone.
    EXPECT_GT(fates[Fate::NotRead], 40);
    EXPECT_GT(fates[Fate::Refused], 8);
    EXPECT_GT(fates[Fate::Failed], 8);
    EXPECT_GT(fates[Fate::CarriedOut], 40);
}

/// A shipped plan's body with one thing wrong in it.
class WrongPlan : public testing::Test {
protected:
    Json m_body = Json::parse(textOf("ddp-4-ranks")).at("plan");

    Json& table(const char* name) { return m_body["schedule"][name]; }
    /// The first action of that verb or kernel.
    Json& action(const std::string& word)
    {
        for (Json& row : table("actions"))
            if (row[0] == word || row[1] == word)
                return row;
        throw std::logic_error("no action " + word);
    }
    int operand(const Json& row, int at)
    {
        return table("operands")[row[4].get<std::size_t>() + static_cast<std::size_t>(at)];
    }
    Tried tried() const { return tryPlan(sealedPlan(m_body)); }
    void expect(Fate fate, const std::string& cause) const
    {
        const Tried got = tried();
        EXPECT_EQ(got.fate, fate) << got.cause;
        EXPECT_NE(got.cause.find(cause), std::string::npos) << got.cause;
    }
};

TEST_F(WrongPlan, AKernelWithoutItsModuleIsNamed)
{
    action("embedding")[7] = -1;
    expect(Fate::Failed, "kernel embedding: module -1 of layer 0 is none that it works on");
}

TEST_F(WrongPlan, AKernelWithAnotherKernelsWeightsIsNamed)
{
    Json& norm = action("norm");
    norm[7] = 1; // a projection's matrix
    expect(Fate::Failed, "kernel norm: module 1 of layer 1 is none that it works on");
}

TEST_F(WrongPlan, TokensThatNobodyLoadedAreNotRead)
{
    Json& load = action("load-batch");
    load[0] = "hold";
    load[10] = 0;
    const Tried got = tried();
    EXPECT_TRUE(got.fate == Fate::Refused || got.fate == Fate::Failed) << got.cause;
    EXPECT_FALSE(got.cause.empty());
}

TEST_F(WrongPlan, BatchesAndTheTrainingsAccumulationMustAgree)
{
    table("segments").back()[3] = 1000000000;
    expect(Fate::TooLarge, "");
    const ExecutablePlan plan = planFromText(sealedPlan(m_body), "plan.json");
    const auto refusals = executorRefusals(plan);
    ASSERT_FALSE(refusals.empty());
    EXPECT_EQ(refusals.front(), "the segment \"optimizer step\" is repeated 1000000000 times and loads no batch");
    table("segments").back()[3] = 1;
    m_body["training"]["gradient_accumulation"] = 3;
    expect(Fate::Refused, "a step loads 1 batches, but training.gradient_accumulation is 3");
}

TEST_F(WrongPlan, ACollectiveInAnOperationOverNoGroupIsRefused)
{
    for (Json& op : table("ops"))
        if (op[0] == "all-reduce") {
            op[0] = "copy";
            op[8] = -1;
        }
    expect(Fate::Refused, "stands in an operation over no group");
}

TEST_F(WrongPlan, GroupsAndBuffersThatAreNotThereAreNotRead)
{
    Json& reduce = action("all-reduce");
    reduce[9] = 7;
    expect(Fate::NotRead, "/plan/schedule/actions/");
    reduce[9] = 0;
    reduce[4] = 2147483647;
    expect(Fate::NotRead, "/plan/schedule/actions/");
}

TEST_F(WrongPlan, WaitsForLaterOperationsAreNotRead)
{
    table("waits")[0][0] = table("ops").size() - 1;
    expect(Fate::NotRead, "waits for operation");
}

TEST_F(WrongPlan, SizesBeyond64BitsAreNamed)
{
    for (Json& content : table("contents"))
        content[6] = 9223372036854775807; // room
    const Tried got = tried();
    EXPECT_EQ(got.fate, Fate::TooLarge); // elements fit 64 bits; their bytes do not
    m_body["ranks"] = 2147483648;
    expect(Fate::NotRead, "/plan/ranks");
}

TEST_F(WrongPlan, ElementsOfHalfAByteAreRefused)
{
    for (Json& content : table("contents"))
        content[1] = "int4";
    expect(Fate::Refused, "elements of int4 are not carried out");
}

TEST_F(WrongPlan, PartsThatNoRankHasAreRefused)
{
    table("contents")[0][3] = 1048576;
    expect(Fate::Refused, "1048576 parts of 4 ranks");
}

TEST(PlanText, CutAtAnyPlaceIsTold)
{
    const std::string text = textOf("native-zero1");
    for (std::size_t length = 0; length + 1 < text.size(); length += length < 300 ? 1 : 211) {
        const std::string said = failure(text.substr(0, length));
        ASSERT_EQ(said.rfind("plan.json: line 1, column ", 0), 0U) << length << ": " << said;
    }
}

TEST(PlanText, AnyByteThatChangedIsTold)
{
    const std::string text = textOf("native-zero1");
    for (std::size_t at = 0; at + 1 < text.size(); at += at < 300 ? 1 : 173)
        for (const char other : {static_cast<char>(text[at] ^ 1), static_cast<char>(text[at] ^ 0x80), ' '}) {
            if (other == text[at])
                continue;
            std::string changed = text;
            changed[at] = other;
            const std::string said = failure(changed);
            EXPECT_EQ(said.rfind("plan.json: ", 0), 0U) << "byte " << at << " '" << text[at] << "': " << said;
        }
}

TEST(PlanText, AnotherVersionIsTold)
{
    Json json = Json::parse(textOf("native-zero1"));
    for (const Json& version : {Json(0), Json(99), Json("1"), Json(), Json::array()}) {
        json["version"] = version;
        EXPECT_NE(failure(json.dump()).find("/version: plan format " + version.dump() + " is not one that"),
                  std::string::npos)
            << failure(json.dump());
    }
}

} // namespace

} // namespace shardwright
