#pragma once

// The transports there are.

#include <chrono>
#include <memory>
#include <vector>

#include "executor/comm/transport.hpp"

namespace shardwright {

/// How a collective of the threads transport goes: Direct, every rank reads the others' memory; Ring, each rank reads
/// its neighbour's only. BySize: by ThreadTransportOptions::ringFrom.
enum class CollectiveAlgorithm : std::uint8_t { BySize, Direct, Ring };

struct TransportOptions {
    /// How long a rank waits for another one before it gives the run up. With what it then takes to end all of them
    /// (MPI's launcher gives processes seconds), nobody waits longer than ten seconds for one that stalls.
    std::chrono::milliseconds timeLimit{8000};
};

struct ThreadTransportOptions : TransportOptions {
    CollectiveAlgorithm algorithm = CollectiveAlgorithm::BySize;
    Bytes ringFrom = kRingFrom; // payloads of so many bytes go around the ring

    /// Up to about 1 MiB direct collectives are faster, having fewer meetings; from some MiB on both go at the memory's
    /// speed, and neighbours share caches (benchmarks/executor/comm_benchmark.cpp, 2 and 4 ranks).
    static constexpr Bytes kRingFrom{4 << 20};
};

/// The ends of `ranks` ranks that are threads of this process. They share what they need: any order of destruction.
std::vector<std::unique_ptr<Transport>> makeThreadTransports(int ranks, const ThreadTransportOptions& options = {});

/// Rank `rank` of `ranks` alone: collectives are counted as rings would send them and not carried out. Buffers then
/// hold what they would if all ranks held what this one holds.
std::unique_ptr<Transport> makeSoloTransport(int rank, int ranks);

/// Whether mpirun has started this process.
bool startedByMpi();
/// Whether this build has the MPI transport.
bool hasMpi();
/// This process's end of MPI's world; MPI begins and ends with it: one a process. One
/// thread at a time calls it, abort() any. EnvironmentError in a build without MPI.
std::unique_ptr<Transport> makeMpiTransport(const TransportOptions& options = {});

} // namespace shardwright
