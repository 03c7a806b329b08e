// Collectives among threads beside the memory bandwidth that they live on, and codecs. Bytes per second of a collective
// are what all ranks send (for a ring and directly alike); of memcpy what is copied; of codecs the fp32 side.

#include <cstring>
#include <thread>
#include <vector>

#include <benchmark/benchmark.h>

#include "executor/comm/codec.hpp"
#include "executor/comm/transports.hpp"

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

/// Payload bytes, ranks, algorithm.
void collective(benchmark::State& state, Collective kind, DType dtype)
{
    const std::int64_t payload = state.range(0);
    const auto ranks = static_cast<int>(state.range(1));
    ThreadTransportOptions options;
    options.algorithm = static_cast<CollectiveAlgorithm>(state.range(2));
    const auto transports = makeThreadTransports(ranks, options);
    std::vector<std::thread> threads;
    std::int64_t sent = 0;
    const auto loop = [&](std::size_t rank, const auto& goOn) {
        const auto group = transports[rank]->communicator({"world", ranks, 1, 1});
        std::vector<std::byte> all(static_cast<std::size_t>(payload));
        std::vector<std::byte> part(static_cast<std::size_t>(payload / ranks));
        const std::int64_t elements = payload / (bitsOf(dtype) / 8);
        while (goOn(*group)) {
            if (kind == Collective::AllGather)
                group->allGather(part.data(), all.data(), payload / ranks);
            else if (kind == Collective::ReduceScatter)
                group->reduceScatter(all.data(), part.data(), elements / ranks, dtype);
            else
                group->allReduce(all.data(), elements, dtype);
            if (rank == 0)
                sent += group->lastSent().count() * ranks;
        }
    };
    // Rank 0 is this thread and tells the others before each round whether there is one.
    const auto follow = [](Communicator& group) {
        char more = 0;
        group.broadcast(&more, 1, 0);
        return more != 0;
    };
    for (int rank = 1; rank < ranks; ++rank)
        threads.emplace_back([&, rank] { loop(static_cast<std::size_t>(rank), follow); });
    const auto lead = [&](Communicator& group) {
        char more = state.KeepRunning() ? 1 : 0;
        const bool goesOn = more != 0;
        group.broadcast(&more, 1, 0);
        return goesOn;
    };
    loop(0, lead);
    for (std::thread& thread : threads)
        thread.join();
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

} // namespace
