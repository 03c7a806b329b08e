#pragma once

// measurement.json: what shardrun measured while it carried out a plan. Nothing in it is computed from the plan.

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/json.hpp"
#include "core/plan.hpp"

namespace shardwright {

constexpr int kMeasurementFormat = 2;

/// Bytes of live buffers in one place ("gpu": the device's memory) on one rank.
struct MeasuredPlace {
    Place place = Place::Gpu;
    Bytes peak;               // most live bytes within a step
    CategoryBytes atPeak{};   // by category then
    std::int64_t peakOp = -1; // operation of the schedule during which the peak stood
    Bytes held;               // live between two steps
    CategoryBytes heldByCategory{};
};

/// What was handed to the transport in one step.
struct MeasuredCollective {
    OpKind op = OpKind::AllGather;
    std::string group;
    std::string payload;
    std::int64_t ranks = 1;
    std::int64_t count = 0;
    Bytes payloadBytes; // sum of the whole tensors, as in CollectiveTraffic
    Bytes sentBytes;    // this rank's, over the transport
};

/// Time and place of one kind of operation, summed over the steps after the first.
struct MeasuredOperation {
    OpKind op = OpKind::Forward;
    Phase phase = Phase::Forward;
    std::int64_t count = 0;
    double seconds = 0;
};

struct RankMeasurement {
    std::int64_t rank = 0;
    std::vector<MeasuredPlace> places;
    std::vector<MeasuredCollective> collectives; // of one step
    std::vector<MeasuredOperation> operations;
    std::vector<CurvePoint> curve;                           // of the last step: device memory after each operation
    Bytes hostToDevice, deviceToHost, nvmeRead, nvmeWritten; // of one step
    Bytes nvmeFiles;                                         // on disk at the end
    Bytes residentSetSize;                                   // of the process, at its peak
    std::int64_t scalarMessages = 0;                         // loss and gradient norm, which no plan counts
    Bytes scalarBytes;
};

struct Measurement {
    std::string plan; // file it was measured from
    std::string scenario;
    std::string strategy;
    std::string transport; // "threads", "mpi", "solo"
    std::string device;    // "host", or the GPU's name
    std::string machine;   // processor and cores
    std::string date;      // ISO 8601, UTC
    bool complete = true;  // false: ended early (Ctrl-C), with what was measured so far
    std::int64_t steps = 0;
    // The first step, from 1, that is one a plan describes: behind the warm-up, and with all that is made in the first
    // step of its kind and then kept (lazy optimizer states). Memory and traffic are the last step's.
    std::int64_t firstSteadyStep = 1;
    std::vector<double> losses;      // by step
    std::vector<double> stepSeconds; // by step, the slowest rank's
    double secondsPerStep = 0;       // median of all but the first
    double tokensPerSecond = 0;
    std::vector<RankMeasurement> ranks;
};

Json toJson(const Measurement& measurement);
Measurement readMeasurement(const std::string& path);
/// `file` is what messages call the text.
Measurement measurementFromText(const std::string& text, const std::string& file);

} // namespace shardwright
