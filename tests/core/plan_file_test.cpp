// plan.json by hand: what is written is read back, and what is wrong is named.

#include "core/json_cursor.hpp"
#include "core/plan_file.hpp"

#include <functional>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include "core/model_file.hpp"
#include "core/schedule_json.hpp"

namespace shardwright {
namespace {

constexpr const char* kConfig = R"({"model_type": "llama", "hidden_size": 8, "intermediate_size": 12,
  "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": 11,
  "max_position_embeddings": 16, "tie_word_embeddings": false})";

constexpr BufferSpec kWhole{"parameters", "4 B x P",       "by hand",           Category::Parameters,
                            Place::Gpu,   Stream::Compute, Lifetime::Persistent};
constexpr BufferSpec kPassing{"a passing tensor", "4 T", "by hand"};

ExecutablePlan plan()
{
    ExecutablePlan result;
    result.scenario = "by hand";
    result.modelConfig = kConfig;
    result.model = modelFromJson(parseJson(kConfig, "config"), "tiny", "config");
    result.training.implementation = Implementation::Shardrun;
    result.strategy.name = "ddp";
    result.strategy.options = DdpOptions{};
    result.ranks = 4;
    result.ranksPerNode = 2;
    SizeTable sizes;
    const BufferClassId whole = sizes.addBuffer(kWhole, Bytes(64));
    const BufferClassId passing = sizes.addBuffer(kPassing, Bytes(16));
    const PayloadId payload = sizes.addPayload({"gradients", "4 B x P", "by hand", Bytes(64), DType::Fp32, true});
    const GroupId world = sizes.addGroup({"world", 4, 2, 1});
    ScheduleBuilder builder(sizes, Recording::ForExecution);
    builder.beginSegment("initialisation");
    builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
    const Content content{Quantity::Parameters, DType::Fp32, {{0, 1}, Cut::Flat, 4, 2}, world};
    const BufferId kept = builder.allocate(whole, builder.content(content));
    builder.act(Verb::Initialize, {}, {kept});
    builder.beginSegment("micro-step", 3);
    const OpId first = builder.op(OpKind::AllReduce, Stream::Reduce, Phase::Backward, 1);
    builder.send(payload, world);
    const BufferId temporary = builder.allocate(passing);
    builder.act(Verb::Move, {kept}, {temporary});
    builder.free(temporary);
    builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep);
    builder.wait(first);
    result.schedule = builder.finish();
    result.prediction = Json{{"verdict", "fits"}};
    return result;
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

/// The plan's text with its body changed, checksum and all: what only a broken shardplan would write.
std::string changed(const std::function<void(ExecutablePlan&)>& change)
{
    ExecutablePlan broken = plan();
    change(broken);
    return planFileText(broken);
}

TEST(PlanFile, IsReadAsItWasWritten)
{
    const ExecutablePlan written = plan();
    const std::string text = planFileText(written);
    const ExecutablePlan read = planFromText(text, "plan.json");
    EXPECT_EQ(planFileText(read), text);
    EXPECT_EQ(toJson(read.schedule), toJson(written.schedule));
    EXPECT_EQ(read.ranks, 4);
    EXPECT_EQ(read.schedule.contents, written.schedule.contents);
    EXPECT_EQ(read.schedule.segments[1].repeat, 3);
    EXPECT_EQ(read.model.parameters(), written.model.parameters());
}

TEST(PlanFile, CutOrChangedFilesAreToldAsSuch)
{
    const std::string text = planFileText(plan());
    for (std::size_t length : {std::size_t{0}, std::size_t{1}, text.size() / 3, text.size() - 3})
        EXPECT_NE(failure(text.substr(0, length)), "") << length;
    std::string edited = text;
    edited.replace(edited.find("\"ranks\":4"), 9, "\"ranks\":8");
    EXPECT_NE(failure(edited).find("changed or cut"), std::string::npos) << failure(edited);
    std::string older = text;
    older.replace(older.find("\"version\":1"), 11, "\"version\":7");
    EXPECT_NE(failure(older).find("plan format 7"), std::string::npos) << failure(older);
    EXPECT_NE(failure("{}").find("no plan for shardrun"), std::string::npos);
    EXPECT_EQ(failure(text), "");
}

/// A vector that grows moves its plans: a copy's schedule would point into the texts of what it was copied from.
TEST(PlanFile, ItsTextsStayWhereTheyAreWhenItMoves)
{
    static_assert(!std::is_copy_constructible_v<ExecutablePlan> && !std::is_copy_assignable_v<ExecutablePlan>);
    const std::string text = planFileText(plan());
    std::vector<ExecutablePlan> plans;
    for (int i = 0; i < 9; ++i)
        plans.push_back(planFromText(text, "plan.json"));
    plans.erase(plans.begin());
    for (const ExecutablePlan& each : plans)
        EXPECT_EQ(planFileText(each), text);
}

TEST(PlanFile, ImpossibleSchedulesAreRefused)
{
    EXPECT_NE(failure(changed([](ExecutablePlan& p) {
                  p.schedule.events.back().change = BufferChange::Allocate;
              })).find("out of order"),
              std::string::npos);
    EXPECT_NE(failure(changed([](ExecutablePlan& p) {
                  p.schedule.actions.back().eventsBefore = 2;
              })).find("used while it is not live"),
              std::string::npos);
    EXPECT_NE(failure(changed([](ExecutablePlan& p) { p.schedule.operands.back() = 99; })).find("/operands"),
              std::string::npos);
    EXPECT_NE(failure(changed([](ExecutablePlan& p) {
                  p.schedule.contents[0].layout.tensors.push_back(1000);
              })).find("/contents/0"),
              std::string::npos);
    EXPECT_NE(
        failure(changed([](ExecutablePlan& p) { p.schedule.sizes.groups[0].ranks = 3; })).find("do not divide 4 ranks"),
        std::string::npos);
    EXPECT_NE(failure(changed([](ExecutablePlan& p) { p.schedule.ops[1].group = -1; })).find("over no group"),
              std::string::npos);
    EXPECT_NE(failure(changed([](ExecutablePlan& p) { p.schedule.segments[1].firstOp = 0; })).find("/segments/1"),
              std::string::npos);
    // A stand-in has something behind it to stand in for.
    EXPECT_NE(failure(changed([](ExecutablePlan& p) { p.schedule.segments[1].repeat = 0; })).find("happens 0 times"),
              std::string::npos);
    EXPECT_NE(failure(changed([](ExecutablePlan& p) { p.schedule.ops[2].firstEvent = 1; })).find("/ops/2"),
              std::string::npos);
}

} // namespace
} // namespace shardwright
