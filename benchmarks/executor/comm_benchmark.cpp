// Collectives among threads beside the memory bandwidth that they live on, and codecs. Bytes per second of a collective
// are what all ranks send (for a ring and directly alike); of memcpy what is copied; of codecs the fp32 side.

#include <algorithm>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include <benchmark/benchmark.h>

#include "executor/comm/codec.hpp"
#include "executor/comm/transports.hpp"
#include "executor/elements.hpp"

namespace {

using namespace shardwright;

void copying(benchmark::State& state)
{
    const auto bytes = static_cast<std::size_t>(state.range(0));
    const std::vector<char> from(bytes, 1);
    std::vector<char> to(bytes);
    for ([[maybe_unused]] auto _ : state) {
        std::memcpy(to.data(), from.data(), bytes);
        benchmark::DoNotOptimize(to.data());
        benchmark::ClobberMemory();
    }
    state.SetBytesProcessed(state.iterations() * state.range(0));
}
BENCHMARK(copying)->Arg(64 << 10)->Arg(1 << 20)->Arg(16 << 20)->UseRealTime();

enum class Collective : std::uint8_t { AllGather, ReduceScatter, AllReduce };

/// Rounds among rank threads: `prepare` makes of a rank's end what it does in each round.
template <typename Prepare>
void rounds(benchmark::State& state, const std::vector<std::unique_ptr<Transport>>& transports, const Prepare& prepare)
{
    const auto ranks = static_cast<std::int64_t>(transports.size());
    const auto loop = [&](std::size_t rank, const auto& goOn) {
        const auto world = transports[rank]->communicator({"world", ranks, 1, 1});
        auto round = prepare(*transports[rank]);
        while (goOn(*world))
            round();
    };
    // Rank 0 is this thread and tells the others before each round whether there is one.
    const auto follow = [](Communicator& group) {
        char more = 0;
        group.broadcast(&more, 1, 0);
        return more != 0;
    };
    std::vector<std::thread> threads;
    for (std::size_t rank = 1; rank < transports.size(); ++rank)
        threads.emplace_back([&, rank] { loop(rank, follow); });
    const auto lead = [&](Communicator& group) {
        char more = state.KeepRunning() ? 1 : 0;
        const bool goesOn = more != 0;
        group.broadcast(&more, 1, 0);
        return goesOn;
    };
    loop(0, lead);
    for (std::thread& thread : threads)
        thread.join();
}

/// Payload bytes, ranks, algorithm.
void collective(benchmark::State& state, Collective kind, DType dtype)
{
    const std::int64_t payload = state.range(0);
    const auto ranks = static_cast<int>(state.range(1));
    ThreadTransportOptions options;
    options.algorithm = static_cast<CollectiveAlgorithm>(state.range(2));
    std::int64_t sent = 0;
    rounds(state, makeThreadTransports(ranks, options), [&](Transport& transport) {
        std::shared_ptr<Communicator> group = transport.communicator({"world", ranks, 1, 1});
        std::vector<std::byte> all(static_cast<std::size_t>(payload));
        std::vector<std::byte> part(static_cast<std::size_t>(payload / ranks));
        return [&, group, all, part, first = transport.rank() == 0]() mutable {
            const std::int64_t elements = payload / (bitsOf(dtype) / 8);
            if (kind == Collective::AllGather)
                group->allGather(part.data(), all.data(), payload / ranks);
            else if (kind == Collective::ReduceScatter)
                group->reduceScatter(all.data(), part.data(), elements / ranks, dtype);
            else
                group->allReduce(all.data(), elements, dtype);
            if (first)
                sent += group->lastSent().count() * ranks;
        };
    });
    state.SetBytesProcessed(sent);
}

void sizesAndAlgorithms(benchmark::internal::Benchmark* benchmark)
{
    benchmark->ArgNames({"bytes", "ranks", "ring"})->UseRealTime();
    for (const std::int64_t ranks : {2, 4})
        for (const std::int64_t bytes : {4 << 10, 64 << 10, 1 << 20, 16 << 20})
            for (const auto algorithm : {CollectiveAlgorithm::Direct, CollectiveAlgorithm::Ring})
                benchmark->Args({bytes, ranks, static_cast<std::int64_t>(algorithm)});
}
BENCHMARK_CAPTURE(collective, all_gather, Collective::AllGather, DType::Fp32)->Apply(sizesAndAlgorithms);
BENCHMARK_CAPTURE(collective, reduce_scatter, Collective::ReduceScatter, DType::Fp32)->Apply(sizesAndAlgorithms);
BENCHMARK_CAPTURE(collective, reduce_scatter_bf16, Collective::ReduceScatter, DType::Bf16)->Apply(sizesAndAlgorithms);
BENCHMARK_CAPTURE(collective, all_reduce, Collective::AllReduce, DType::Fp32)->Apply(sizesAndAlgorithms);

constexpr std::int64_t kCoded = 1 << 20; // elements

void encoding(benchmark::State& state, Codec codec)
{
    const Encoding code{codec, codec == Codec::Sign ? 0 : 2048};
    std::vector<float> values(kCoded);
    for (std::size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<float>(i % 1021) - 510.0F;
    std::vector<std::byte> encoded(static_cast<std::size_t>(encodedBytes(code, kCoded).count()));
    for ([[maybe_unused]] auto _ : state) {
        encode(code, values.data(), DType::Fp32, kCoded, encoded.data());
        benchmark::DoNotOptimize(encoded.data());
        benchmark::ClobberMemory();
    }
    state.SetBytesProcessed(state.iterations() * kCoded * 4);
}
BENCHMARK_CAPTURE(encoding, int8, Codec::Int8Blockwise);
BENCHMARK_CAPTURE(encoding, int4, Codec::Int4Blockwise);
BENCHMARK_CAPTURE(encoding, sign, Codec::Sign);

void decoding(benchmark::State& state, Codec codec)
{
    const Encoding code{codec, codec == Codec::Sign ? 0 : 2048};
    std::vector<float> values(kCoded, 1.0F);
    std::vector<std::byte> encoded(static_cast<std::size_t>(encodedBytes(code, kCoded).count()));
    encode(code, values.data(), DType::Fp32, kCoded, encoded.data());
    for ([[maybe_unused]] auto _ : state) {
        decode(code, encoded.data(), kCoded, values.data(), DType::Fp32);
        benchmark::DoNotOptimize(values.data());
        benchmark::ClobberMemory();
    }
    state.SetBytesProcessed(state.iterations() * kCoded * 4);
}
BENCHMARK_CAPTURE(decoding, int8, Codec::Int8Blockwise);
BENCHMARK_CAPTURE(decoding, int4, Codec::Int4Blockwise);
BENCHMARK_CAPTURE(decoding, sign, Codec::Sign);

constexpr int kNodes = 2, kRanksPerNode = 2, kRanks = kNodes * kRanksPerNode;

/// The mean of `versions` ranks' codes of the same pieces.
void meanOf(const Encoding& code, const std::vector<std::byte>& encoded, std::int64_t pieces, std::int64_t piece,
            int versions, std::vector<float>& mean)
{
    std::vector<float> one(static_cast<std::size_t>(piece));
    const std::byte* from = encoded.data();
    std::fill(mean.begin(), mean.end(), 0.0F);
    for (int version = 0; version < versions; ++version)
        for (std::int64_t i = 0; i < pieces; ++i, from += encodedBytes(code, piece).count()) {
            decode(code, from, piece, one.data(), DType::Fp32);
            addElements(one.data(), DType::Fp32, mean.data() + i * piece, DType::Fp32, piece);
        }
    scaleElements(mean.data(), DType::Fp32, static_cast<std::int64_t>(mean.size()), 1.0 / versions);
}

/// A gradient reduced in ZeRO++'s two hops, int4 and all; beside it collective/reduce_scatter on four ranks. Bytes are
/// the gradient's.
void twoHops(benchmark::State& state)
{
    const std::int64_t elements = state.range(0) / 4;
    const std::int64_t piece = elements / kRanks;
    const Encoding code{Codec::Int4Blockwise, 2048};
    const auto coded = static_cast<std::size_t>(encodedBytes(code, piece).count());
    rounds(state, makeThreadTransports(kRanks), [&](Transport& transport) {
        std::shared_ptr<Communicator> node = transport.communicator({"node", kRanksPerNode, 1, 1});
        std::shared_ptr<Communicator> across = transport.communicator({"across", kNodes, 1, kRanksPerNode});
        std::vector<float> gradient(static_cast<std::size_t>(elements), 0.5F);
        std::vector<float> ofNode(static_cast<std::size_t>(piece * kNodes));
        std::vector<float> own(static_cast<std::size_t>(piece));
        std::vector<std::byte> inside(coded * kRanks), arrived = inside;
        std::vector<std::byte> between(coded * kNodes), met = between;
        return [=]() mutable {
            for (int gpu = 0; gpu < kRanksPerNode; ++gpu)
                for (int home = 0; home < kNodes; ++home)
                    encode(code, gradient.data() + (home * kRanksPerNode + gpu) * piece, DType::Fp32, piece,
                           inside.data() + static_cast<std::size_t>(gpu * kNodes + home) * coded);
            node->allToAll(inside.data(), arrived.data(), static_cast<std::int64_t>(coded) * kNodes);
            meanOf(code, arrived, kNodes, piece, kRanksPerNode, ofNode);
            for (int home = 0; home < kNodes; ++home)
                encode(code, ofNode.data() + home * piece, DType::Fp32, piece,
                       between.data() + static_cast<std::size_t>(home) * coded);
            across->allToAll(between.data(), met.data(), static_cast<std::int64_t>(coded));
            meanOf(code, met, 1, piece, kNodes, own);
            benchmark::DoNotOptimize(own.data());
        };
    });
    state.SetBytesProcessed(state.iterations() * state.range(0) * kRanks);
}
BENCHMARK(twoHops)->Arg(64 << 10)->Arg(1 << 20)->Arg(16 << 20)->ArgName("bytes")->UseRealTime();

} // namespace
