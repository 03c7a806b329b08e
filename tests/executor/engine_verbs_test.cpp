// What single actions do to buffers, worked out by hand: moves between cuts, dtypes, places and codes, and collectives
// over three ranks.

#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <mutex>
#include <thread>

#include <gtest/gtest.h>

#include "core/json_cursor.hpp"
#include "core/scenario_file.hpp"
#include "executor/comm/transports.hpp"
#include "executor/elements.hpp"
#include "executor/engine/collectives.hpp"
#include "executor/layers/device.hpp"
#include "executor/layers/layer_kernels.hpp"

namespace shardwright {
namespace {

constexpr BufferSpec kOnDevice{"on the device", "", "", Category::Parameters};
constexpr BufferSpec kOnHost{"on the host", "", "", Category::OptimizerStates, Place::HostPinned};
constexpr BufferSpec kOnNvme{"on NVMe", "", "", Category::OptimizerStates, Place::Nvme};

/// A plan of buffers alone: the tests carry out their actions themselves.
class Bench {
public:
    /// Groups: 0 all ranks, 1 those of a node, 2 those of equal place on all nodes.
    explicit Bench(int ranks, int ranksPerNode = 1) : m_builder(sizesFor(ranks, ranksPerNode), Recording::ForExecution)
    {
        m_plan.model = modelFromConfig();
        m_plan.training.implementation = Implementation::Shardrun;
        m_plan.training.precision = {std::nullopt, DType::Fp32, false};
        m_plan.training.sequenceLength = 8;
        m_plan.ranks = ranks;
        m_builder.beginSegment("initialisation");
        m_op = m_builder.op(OpKind::AllReduce, Stream::Compute, Phase::Init);
    }

    BufferId buffer(Place place, const Content& content)
    {
        const BufferClassId id = place == Place::Gpu ? 0 : place == Place::HostPinned ? 1 : 2;
        return m_builder.allocate(id, m_builder.content(content));
    }
    ContentId content(const Content& content) { return m_builder.content(content); }

    const ExecutablePlan& finish()
    {
        Action none;
        none.verb = Verb::Initialize;
        m_builder.act(none, {}, {});
        m_plan.schedule = m_builder.finish();
        return m_plan;
    }

    static Model modelFromConfig()
    {
        const Json json{{"schema", "shardwright-scenario/1"},
                        {"name", "bench"},
                        {"model", Json::parse(R"({"model_type": "gpt2", "n_embd": 6, "n_layer": 1, "n_head": 2,
                                                  "vocab_size": 7, "n_positions": 8, "attn_pdrop": 0, "embd_pdrop": 0,
                                                  "resid_pdrop": 0})")},
                        {"cluster", "dgx-h100"},
                        {"training", {{"sequence_length", 8}}}};
        return scenarioFromJson(json, "bench").model;
    }

private:
    static SizeTable sizesFor(int ranks, int ranksPerNode)
    {
        SizeTable sizes;
        for (const BufferSpec* spec : {&kOnDevice, &kOnHost, &kOnNvme})
            sizes.addBuffer(*spec, Bytes(1)); // the plan's bytes mean nothing to the executor
        sizes.addGroup({"world", ranks, 1, 1});
        sizes.addGroup({"node", ranksPerNode, 1, 1});
        sizes.addGroup({"across nodes", ranks / ranksPerNode, 1, ranksPerNode});
        return sizes;
    }

    ExecutablePlan m_plan;
    ScheduleBuilder m_builder;
    OpId m_op = -1;
};

/// One rank's engine over a bench's plan, with every buffer live.
struct Rank {
    Rank(const ExecutablePlan& plan, Transport& transport)
        : device(makeHostDevice(1)), kernels(plan.model, plan.training, 1, *device),
          shapes(shapesOf(plan, kernels, transport.rank(), unknown)), arena(Bytes(0)), recorder(plan.schedule),
          files(std::filesystem::temp_directory_path().string(), transport.rank()),
          buffers(plan.schedule, shapes, arena, &files), mover(buffers, recorder),
          collectives(plan, buffers, recorder, transport), op(plan.schedule.ops.front())
    {
        op.group = 0;
        recorder.beginStep(false);
        for (std::size_t i = 0; i < plan.schedule.buffers.size(); ++i)
            buffers.allocate(static_cast<BufferId>(i));
    }

    /// Element i of tensor t becomes value(t, i), as far as the buffer holds it.
    void fill(BufferId buffer, const std::function<double(std::int32_t, std::int64_t)>& value)
    {
        OpenBuffer open(buffers, buffer, OpenBuffer::Use::Overwrite);
        for (const Piece& piece : buffers.held(buffer)->pieces)
            for (std::int64_t i = 0; i < piece.count; ++i) {
                const auto element = static_cast<float>(value(piece.tensor, piece.first + i));
                convertElements(&element, DType::Fp32, open.data() + bytesOf(piece.at + i, open.dtype()).count(),
                                open.dtype(), 1);
            }
        open.close();
    }

    void check(BufferId buffer, const std::function<double(std::int32_t, std::int64_t)>& value, double tolerance = 0)
    {
        OpenBuffer open(buffers, buffer, OpenBuffer::Use::Read);
        std::int64_t checked = 0;
        for (const Piece& piece : buffers.held(buffer)->pieces)
            for (std::int64_t i = 0; i < piece.count; ++i, ++checked) {
                float element = 0;
                convertElements(open.data() + bytesOf(piece.at + i, open.dtype()).count(), open.dtype(), &element,
                                DType::Fp32, 1);
                ASSERT_NEAR(element, value(piece.tensor, piece.first + i), tolerance)
                    << "tensor " << piece.tensor << ", element " << piece.first + i;
            }
        EXPECT_GT(checked, 0);
    }

    void act(Verb verb, std::vector<BufferId> reads, std::vector<BufferId> writes, ContentId content = -1,
             GroupId group = 0)
    {
        Action action;
        action.verb = verb;
        action.group = op.group = group;
        action.content = content;
        collectives.run(op, action, reads, writes);
    }

    RankMeasurement measured()
    {
        recorder.endStep(arena);
        RankMeasurement measurement;
        recorder.fill(measurement, arena);
        return measurement;
    }

    std::vector<std::string> unknown;
    std::unique_ptr<Device> device;
    LayerKernels kernels;
    Shapes shapes;
    Arena arena;
    Recorder recorder;
    NvmeFiles files;
    Buffers buffers;
    Mover mover;
    Collectives collectives;
    Op op;
};

/// Runs `body` on every rank; what a rank throws ends the test.
void onRanks(const ExecutablePlan& plan, const std::function<void(Rank&, int)>& body)
{
    const auto ends = makeThreadTransports(static_cast<int>(plan.ranks));
    std::vector<std::thread> threads;
    for (const auto& end : ends)
        threads.emplace_back([&, transport = end.get()] {
            try {
                Rank rank(plan, *transport);
                body(rank, transport->rank());
            } catch (const std::exception& error) {
                ADD_FAILURE() << error.what();
                transport->abort(error.what());
            }
        });
    for (std::thread& thread : threads)
        thread.join();
}

double pattern(std::int32_t tensor, std::int64_t element)
{
    return tensor * 100 + static_cast<double>(element) + 0.25;
}

const std::vector<std::int32_t> kTensors = {0, 2, 3, 5}; // 7 x 6, 6, 6, 18: none is a multiple of three parts of four

Content contentOf(DType dtype, Cut cut, bool allParts = true, std::int64_t parts = 1,
                  Quantity quantity = Quantity::Parameters)
{
    Content content;
    content.quantity = quantity;
    content.dtype = dtype;
    content.layout = {kTensors, cut, parts, 1, allParts};
    content.group = parts > 1 && !allParts ? 0 : -1;
    return content;
}

TEST(EngineVerbs, MovesGoBetweenCutsDtypesAndPlaces)
{
    Bench bench(1);
    const BufferId whole = bench.buffer(Place::Gpu, contentOf(DType::Fp32, Cut::Whole, false));
    const BufferId flat = bench.buffer(Place::HostPinned, contentOf(DType::Fp32, Cut::Flat));
    const BufferId file = bench.buffer(Place::Nvme, contentOf(DType::Fp32, Cut::Flat));
    const BufferId half = bench.buffer(Place::Gpu, contentOf(DType::Bf16, Cut::EachRows));
    onRanks(bench.finish(), [&](Rank& rank, int) {
        rank.fill(whole, pattern);
        const auto move = [&](BufferId from, BufferId to, bool add = false) {
            rank.mover.move(std::span(&from, 1), std::span(&to, 1), add);
        };
        move(whole, flat);
        move(flat, file);
        rank.fill(flat, [](auto, auto) { return -1; });
        rank.check(file, pattern);
        move(file, flat);
        rank.check(flat, pattern);
        move(flat, half);
        rank.check(half, [](std::int32_t tensor, std::int64_t element) {
            return floatOfBf16(bf16Of(static_cast<float>(pattern(tensor, element))));
        });
        move(whole, flat, true);
        rank.check(flat, [](auto tensor, auto element) { return 2 * pattern(tensor, element); });
        const std::int64_t elements = rank.buffers.held(whole)->elements;
        const RankMeasurement measured = rank.measured();
        EXPECT_EQ(measured.nvmeWritten.count(), elements * 4);
        EXPECT_EQ(measured.nvmeRead.count(), elements * 4);
        EXPECT_EQ(measured.deviceToHost.count(), 2 * elements * 4);
        EXPECT_EQ(measured.hostToDevice.count(), elements * 2); // cast on the host: bf16 goes over
    });
}

TEST(EngineVerbs, PartsAreGatheredAndScattered)
{
    for (const Cut cut : {Cut::Flat, Cut::EachFlat, Cut::EachRows}) {
        Bench bench(3);
        const BufferId part = bench.buffer(Place::Gpu, contentOf(DType::Fp32, cut, false, 3));
        const BufferId all = bench.buffer(Place::Gpu, contentOf(DType::Fp32, cut, true, 3));
        const BufferId whole = bench.buffer(Place::Gpu, contentOf(DType::Fp32, Cut::Whole, false));
        onRanks(bench.finish(), [&](Rank& rank, int me) {
            rank.fill(part, pattern);
            rank.act(Verb::AllGather, {part}, {all});
            rank.check(all, pattern);
            // Into tensors that stand whole: through a copy, with the same bytes on the wire.
            rank.act(Verb::AllGather, {part}, {whole});
            rank.check(whole, pattern);
            rank.fill(all, [&](auto tensor, auto element) { return pattern(tensor, element) * (me + 1); });
            rank.act(Verb::ReduceScatter, {all}, {part});
            rank.check(
                part, [](auto tensor, auto element) { return 2 * pattern(tensor, element); }, 1e-4);
            const RankMeasurement measured = rank.measured();
            const std::int64_t bytes = rank.buffers.held(all)->elements * 4;
            EXPECT_EQ(measured.collectives.front().count, 3);
            EXPECT_EQ(measured.collectives.front().payloadBytes.count(), 3 * bytes);
            EXPECT_EQ(measured.collectives.front().sentBytes.count(), 3 * bytes / 3 * 2);
        });
    }
}

TEST(EngineVerbs, EncodedPartsComeBackWithinTheirScale)
{
    Bench bench(3);
    Content encoded = contentOf(DType::Fp32, Cut::EachFlat, false, 3);
    encoded.codec = Codec::Int8Blockwise;
    encoded.block = 8;
    Content all = encoded;
    all.layout.allParts = true;
    all.group = -1;
    const BufferId part = bench.buffer(Place::Gpu, contentOf(DType::Fp32, Cut::EachFlat, false, 3));
    const BufferId code = bench.buffer(Place::Gpu, encoded);
    const BufferId codes = bench.buffer(Place::Gpu, all);
    const BufferId whole = bench.buffer(Place::Gpu, contentOf(DType::Fp32, Cut::Whole, false));
    onRanks(bench.finish(), [&](Rank& rank, int) {
        rank.fill(part, pattern);
        rank.mover.move(std::span(&part, 1), std::span(&code, 1), false);
        rank.act(Verb::AllGather, {code}, {codes});
        rank.mover.move(std::span(&codes, 1), std::span(&whole, 1), false);
        const double largest = pattern(kTensors.back(), 17);
        rank.check(whole, pattern, largest / 127 / 2 * 1.001);
        // A byte an element and a scale a block.
        const std::int64_t elements = rank.buffers.held(part)->elements;
        EXPECT_EQ(rank.buffers.shape(code).bytes.count(), elements + (elements + 7) / 8 * 4);
        EXPECT_EQ(rank.buffers.shape(codes).bytes, rank.buffers.shape(code).bytes * 3);
    });
}

TEST(EngineVerbs, ReduceToGivesTheMeanToTheOwnerAlone)
{
    Bench bench(3);
    const Quantity gradients = Quantity::Gradients;
    const BufferId whole = bench.buffer(Place::Gpu, contentOf(DType::Fp32, Cut::Whole, false, 1, gradients));
    const BufferId own = bench.buffer(Place::Gpu, contentOf(DType::Fp32, Cut::Flat, false, 3, gradients));
    const ContentId owners = bench.content(contentOf(DType::Fp32, Cut::Flat, false, 3, gradients));
    onRanks(bench.finish(), [&](Rank& rank, int me) {
        rank.fill(whole, [&](auto tensor, auto element) { return pattern(tensor, element) * (me + 1); });
        rank.act(Verb::ReduceTo, {}, {whole}, owners);
        rank.mover.move(std::span(&whole, 1), std::span(&own, 1), false);
        rank.check(
            own, [](auto tensor, auto element) { return 2 * pattern(tensor, element); }, 1e-4);
        EXPECT_EQ(rank.measured().collectives.front().count, 3); // one root after the other
    });
}

/// Of 72 elements in parts of 24 the second and the third go; the first stays what it was on every rank.
TEST(EngineVerbs, ReduceToSomePartsLeavesTheOthersAlone)
{
    Bench bench(3);
    const Quantity gradients = Quantity::Gradients;
    const BufferId whole = bench.buffer(Place::Gpu, contentOf(DType::Fp32, Cut::Flat, true, 1, gradients));
    const BufferId own = bench.buffer(Place::Gpu, contentOf(DType::Fp32, Cut::Flat, false, 3, gradients));
    const ContentId owners = bench.content(contentOf(DType::Fp32, Cut::Flat, false, 3, gradients));
    onRanks(bench.finish(), [&](Rank& rank, int me) {
        const auto mine = [&](auto tensor, auto element) { return pattern(tensor, element) * (me + 1); };
        rank.fill(whole, mine);
        rank.op.firstPart = 1;
        rank.op.endPart = 3;
        rank.act(Verb::ReduceTo, {}, {whole}, owners);
        rank.mover.move(std::span(&whole, 1), std::span(&own, 1), false);
        if (me == 0)
            rank.check(own, mine);
        else
            rank.check(
                own, [](auto tensor, auto element) { return 2 * pattern(tensor, element); }, 1e-4);
        const MeasuredCollective measured = rank.measured().collectives.front();
        EXPECT_EQ(measured.count, 2);
        EXPECT_EQ(measured.payloadBytes, Bytes(2 * 24 * 4));
        EXPECT_EQ(measured.sentBytes, Bytes((me == 0 ? 2 : 1) * 24 * 4)); // all but what a rank owns
    });
}

TEST(EngineVerbs, ReduceScatterOfAContentLeavesOtherTensorsAlone)
{
    Bench bench(3);
    Content first = contentOf(DType::Fp32, Cut::Whole, false, 1, Quantity::Gradients);
    Content second = first;
    Content owners = contentOf(DType::Fp32, Cut::EachFlat, false, 3, Quantity::Gradients);
    first.layout.tensors = {0, 2};
    second.layout.tensors = {3, 5};
    owners.layout.tensors = {0, 5}; // 42 elements in parts of 14, 18 in parts of 6
    Content others = first;
    others.layout.tensors = {2};
    const BufferId one = bench.buffer(Place::Gpu, first);
    const BufferId other = bench.buffer(Place::Gpu, second);
    const BufferId own = bench.buffer(Place::Gpu, owners);
    const BufferId rest = bench.buffer(Place::Gpu, others);
    const ContentId scattered = bench.content(owners);
    onRanks(bench.finish(), [&](Rank& rank, int me) {
        const auto mine = [&](auto tensor, auto element) { return pattern(tensor, element) * (me + 1); };
        rank.fill(one, mine);
        rank.fill(other, mine);
        rank.act(Verb::ReduceScatter, {}, {one, other}, scattered);
        const std::vector<BufferId> both = {one, other};
        rank.mover.move(both, std::span(&own, 1), false);
        rank.mover.move(both, std::span(&rest, 1), false);
        rank.check(
            own, [](auto tensor, auto element) { return 2 * pattern(tensor, element); }, 1e-4);
        rank.check(rest, mine);
        const RankMeasurement measured = rank.measured();
        EXPECT_EQ(measured.collectives.front().count, 1);
        EXPECT_EQ(measured.collectives.front().payloadBytes.count(), (42 + 18) * 4);
    });
}

/// ZeRO++'s quantised reduction of one tensor: 48 elements, twelve a rank, six of which share a scale.
struct TwoHops {
    TwoHops(int nodes, int ranksPerNode) : bench(nodes * ranksPerNode, ranksPerNode)
    {
        const int ranks = nodes * ranksPerNode;
        Content content;
        content.quantity = Quantity::Gradients;
        content.layout = {{1}, Cut::Whole, 1, 1, false};
        whole = bench.buffer(Place::Gpu, content);
        content.layout = {{1}, Cut::EachFlat, ranks, 1, false};
        content.group = 0;
        own = bench.buffer(Place::Gpu, content);
        content.codec = Codec::Int4Blockwise;
        content.block = 6;
        Content arrived = content;
        arrived.versions = nodes;
        arrivedBetween = bench.buffer(Place::Gpu, arrived);
        content.layout = {{1}, Cut::Swizzled, ranksPerNode, nodes, true};
        content.group = 1;
        inside = bench.buffer(Place::Gpu, content);
        content.layout.allParts = false;
        between = bench.buffer(Place::Gpu, content);
        content.versions = ranksPerNode;
        arrivedInside = bench.buffer(Place::Gpu, content);
    }

    void reduce(Rank& rank) const
    {
        const auto move = [&](BufferId from, BufferId to) {
            rank.mover.move(std::span(&from, 1), std::span(&to, 1), false);
        };
        move(whole, inside);
        rank.act(Verb::AllToAll, {inside}, {arrivedInside}, -1, 1);
        move(arrivedInside, between);
        rank.act(Verb::AllToAll, {between}, {arrivedBetween}, -1, 2);
        move(arrivedBetween, own);
    }

    Bench bench;
    BufferId whole = -1, own = -1, inside = -1, arrivedInside = -1, between = -1, arrivedBetween = -1;
};

TEST(EngineVerbs, TwoHopsOfInt4AreTheMeanWhereItsStepsHitTheValues)
{
    TwoHops hops(2, 2);
    // Each run of six has a 7 or -7, so that the scales are 1, 2, 3 and 4 on the four ranks, 1.5 and 3.5 on the nodes.
    const auto steps = [](std::int64_t element) {
        constexpr std::array<int, 6> kRun = {3, -7, 0, 5, -1, 2};
        return kRun[static_cast<std::size_t>(element % 6)] * (element / 6 % 2 == 0 ? 1 : -1);
    };
    onRanks(hops.bench.finish(), [&](Rank& rank, int me) {
        rank.fill(hops.whole, [&](auto, auto element) { return (me + 1) * steps(element); });
        hops.reduce(rank);
        // Rank 1 is GPU 1 of node 0: it sends GPU 0's twelve elements of both nodes first, two a byte, then two scales.
        if (me == 1) {
            const std::byte* sent = rank.buffers.data(hops.inside);
            EXPECT_EQ(sent[0], std::byte{0x93}); // 3, -7
            EXPECT_EQ(sent[1], std::byte{0x50}); // 0, 5
            EXPECT_EQ(sent[2], std::byte{0x2f}); // -1, 2
            float scale = 0;
            std::memcpy(&scale, sent + 6, sizeof scale);
            EXPECT_EQ(scale, 2);
        }
        rank.check(hops.own, [&](auto, auto element) { return 2.5 * steps(element); });
        EXPECT_EQ(rank.buffers.held(hops.own)->pieces.front().first, 12 * me);
        const RankMeasurement measured = rank.measured();
        ASSERT_EQ(measured.collectives.size(), 2U);
        // 48 halves of a byte and eight scales to the other GPU and to oneself; half of it between nodes.
        EXPECT_EQ(measured.collectives[0].payloadBytes.count(), 24 + 8 * 4);
        EXPECT_EQ(measured.collectives[0].sentBytes.count(), (24 + 8 * 4) / 2);
        EXPECT_EQ(measured.collectives[1].payloadBytes.count(), 12 + 4 * 4);
        EXPECT_EQ(measured.collectives[1].sentBytes.count(), (12 + 4 * 4) / 2);
    });
}

// Each hop is off by half a step at most: of a rank's largest value in the first, of a node's mean in the second.
TEST(EngineVerbs, TwoHopsOfInt4StayWithinTheirError)
{
    for (const auto& [nodes, ranksPerNode] : std::vector<std::pair<int, int>>{{2, 1}, {2, 2}, {3, 2}, {2, 4}, {4, 2}}) {
        TwoHops hops(nodes, ranksPerNode);
        const int ranks = nodes * ranksPerNode;
        const auto value = [](int rank, std::int64_t element) {
            return std::sin(static_cast<double>(element * 7 + rank * 13)) * (1 + static_cast<double>(element % 5));
        };
        const auto mean = [&](std::int64_t element) {
            double sum = 0;
            for (int rank = 0; rank < ranks; ++rank)
                sum += value(rank, element) / ranks;
            return sum;
        };
        const double largest = 5;
        const double bound = 2 * (largest / 7) * (0.5 + 8 * 0x1p-23);
        double worst = 0;
        std::mutex guard;
        onRanks(hops.bench.finish(), [&](Rank& rank, int me) {
            rank.fill(hops.whole, [&](auto, auto element) { return value(me, element); });
            hops.reduce(rank);
            rank.check(
                hops.own, [&](auto, auto element) { return mean(element); }, bound);
            OpenBuffer open(rank.buffers, hops.own, OpenBuffer::Use::Read);
            const Piece& piece = rank.buffers.held(hops.own)->pieces.front();
            const std::lock_guard lock(guard);
            for (std::int64_t i = 0; i < piece.count; ++i)
                worst = std::max(
                    worst, std::abs(reinterpret_cast<const float*>(open.data())[piece.at + i] - mean(piece.first + i)));
        });
        EXPECT_GT(worst, 0.01) << nodes << " x " << ranksPerNode; // it was quantised
    }
}

TEST(EngineVerbs, AllReduceOfAContentTakesOnlyItsTensors)
{
    Bench bench(3);
    Content first = contentOf(DType::Fp32, Cut::Whole, false, 1, Quantity::Gradients);
    Content second = first;
    Content bucket = first;
    first.layout.tensors = {0, 2};
    second.layout.tensors = {3, 5};
    bucket.layout.tensors = {2, 3};
    const BufferId one = bench.buffer(Place::Gpu, first);
    const BufferId other = bench.buffer(Place::Gpu, second);
    const ContentId reduced = bench.content(bucket);
    onRanks(bench.finish(), [&](Rank& rank, int me) {
        const auto mine = [&](auto tensor, auto element) { return pattern(tensor, element) * (me + 1); };
        rank.fill(one, mine);
        rank.fill(other, mine);
        rank.act(Verb::AllReduce, {}, {one, other}, reduced);
        const auto expected = [&](auto tensor, auto element) {
            return tensor == 2 || tensor == 3 ? 2 * pattern(tensor, element) : mine(tensor, element);
        };
        rank.check(one, expected, 1e-4);
        rank.check(other, expected, 1e-4);
        const RankMeasurement measured = rank.measured();
        EXPECT_EQ(measured.collectives.front().count, 1);
        EXPECT_EQ(measured.collectives.front().payloadBytes.count(),
                  rank.buffers.held(one)->whole(2, 6)->count * 4 + rank.buffers.held(other)->pieces.front().count * 4);
    });
}

TEST(EngineVerbs, BroadcastAndExchange)
{
    Bench bench(3);
    const BufferId sent = bench.buffer(Place::Gpu, contentOf(DType::Fp32, Cut::EachFlat, true, 3));
    const BufferId received = bench.buffer(Place::Gpu, contentOf(DType::Fp32, Cut::EachFlat, true, 3));
    onRanks(bench.finish(), [&](Rank& rank, int me) {
        rank.fill(received, [&](auto tensor, auto element) { return pattern(tensor, element) + me; });
        rank.act(Verb::Broadcast, {}, {received});
        rank.check(received, pattern);
        const TensorView from = rank.buffers.view(sent);
        const TensorView to = rank.buffers.view(received);
        const std::int64_t piece = from.elements / 3;
        for (std::int64_t i = 0; i < from.elements; ++i) // piece r of rank m is 10 m + r
            from.as<float>()[i] = static_cast<float>(10 * me + i / piece);
        rank.act(Verb::AllToAll, {sent}, {received});
        for (std::int64_t i = 0; i < to.elements; ++i)
            ASSERT_EQ(to.as<float>()[i], static_cast<float>(10 * (i / piece) + me));
    });
}

} // namespace
} // namespace shardwright
