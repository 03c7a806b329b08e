#include "executor/run/calibration.hpp"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "executor/comm/transports.hpp"
#include "executor/engine/optimizer.hpp"
#include "executor/layers/device.hpp"

namespace shardwright {

namespace {

using Clock = std::chrono::steady_clock;

double secondsSince(Clock::time_point begin)
{
    return std::chrono::duration<double>(Clock::now() - begin).count();
}

double median(std::vector<double> values)
{
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

std::string processorName()
{
    std::ifstream file("/proc/cpuinfo");
    std::string line;
    while (std::getline(file, line))
        if (line.rfind("model name", 0) == 0 && line.find(": ") != std::string::npos)
            return line.substr(line.find(": ") + 2);
    return "host processor";
}

Bytes physicalMemory()
{
    return Bytes(::sysconf(_SC_PHYS_PAGES)) * ::sysconf(_SC_PAGESIZE);
}

/// Memory of one rank's operands, filled with something that neither vanishes nor overflows.
class Operand {
public:
    Operand(std::int64_t elements, DType dtype)
        : m_memory(static_cast<std::size_t>(bytesOf(elements, dtype).count())), m_elements(elements), m_dtype(dtype)
    {
        if (dtype == DType::Fp32) {
            auto* values = view().as<float>();
            for (std::int64_t i = 0; i < elements; ++i)
                values[i] = 0.01F * static_cast<float>(i % 97) - 0.48F;
        } else {
            std::memset(m_memory.data(), 0x3c, m_memory.size()); // bf16: 0.0115
        }
    }
    TensorView view() { return {m_memory.data(), m_elements, m_dtype}; }
    char* bytes() { return m_memory.data(); }

private:
    std::vector<char> m_memory;
    std::int64_t m_elements;
    DType m_dtype;
};

class Calibrator {
public:
    Calibrator(const CalibrationOptions& options, const std::function<void(const std::string&)>& progress)
        : m_options(options), m_progress(progress)
    {
    }

    Cluster run()
    {
        Cluster cluster;
        cluster.id = "this-machine";
        cluster.name = fmt::format("{}, {} ranks of {} threads", processorName(), m_options.ranks, m_options.threads);
        cluster.gpusPerNode = m_options.ranks;
        cluster.nodes = 1;
        cluster.cpuCores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
        cluster.hostMemory = figure(physicalMemory().asDouble(), "sysconf(_SC_PHYS_PAGES)");
        Gpu& gpu = cluster.gpu;
        gpu.name = processorName();
        gpu.computeCapability = kHostProcessor;
        gpu.memory = figure(physicalMemory().asDouble() / m_options.ranks, "an even share of the host's memory");
        gpu.peakFlops[DType::Fp32] = product(DType::Fp32);
        gpu.peakFlops[DType::Bf16] = product(DType::Bf16);
        attention(gpu);
        gpu.measuredRates[MeasuredRate::Pointwise] = gpu.memoryBandwidth = pointwise();
        gpu.measuredRates[MeasuredRate::Optimizer] = optimizer();
        gpu.measuredRates[MeasuredRate::Copy] = copy();
        cluster.pcieBandwidth = gpu.measuredRates[MeasuredRate::Copy];
        cluster.pcieBandwidth.value /= 2; // of what is copied, not of what is read and written
        cluster.hostMemoryBandwidth = gpu.measuredRates[MeasuredRate::Copy];
        cluster.hostMemoryBandwidth.value *= m_options.ranks;
        if (m_options.ranks > 1)
            links(cluster);
        if (!m_options.nvmeFolder.empty())
            files(cluster);
        return cluster;
    }

private:
    static Figure figure(double value, const std::string& source) { return {value, Provenance::Measured, source}; }

    void say(const std::string& what) const
    {
        if (m_progress)
            m_progress(what);
    }

    /// Seconds of `body` on every rank at once: prepare(rank) makes a rank's body. The median over ranks and
    /// repetitions, after one that warms up.
    template <typename Prepare> double time(const std::string& what, Prepare prepare) const
    {
        say(what);
        std::vector<std::vector<double>> took(static_cast<std::size_t>(m_options.ranks));
        std::barrier together(m_options.ranks);
        std::vector<std::thread> ranks;
        for (int rank = 0; rank < m_options.ranks; ++rank)
            ranks.emplace_back([&, rank] {
                auto body = prepare(rank);
                body();
                together.arrive_and_wait();
                const auto begin = Clock::now();
                std::vector<double>& mine = took[static_cast<std::size_t>(rank)];
                constexpr std::size_t kFewest = 5;
                while (mine.size() < kFewest || secondsSince(begin) < m_options.seconds) {
                    const auto start = Clock::now();
                    body();
                    mine.push_back(secondsSince(start));
                }
            });
        for (std::thread& rank : ranks)
            rank.join();
        std::vector<double> all;
        for (const std::vector<double>& mine : took)
            all.insert(all.end(), mine.begin(), mine.end());
        return median(std::move(all));
    }

    Figure product(DType dtype) const
    {
        constexpr std::int64_t kSide = 512;
        const std::string what = fmt::format("matrix products of {0} x {0} x {0}, {1}", kSide, nameOf(dtype));
        const double seconds = time(what, [&](int) {
            return [=, device = makeHostDevice(m_options.threads), a = Operand(kSide * kSide, dtype),
                    b = Operand(kSide * kSide, dtype), c = Operand(kSide * kSide, dtype)]() mutable {
                device->multiply(a.view(), Transpose::No, b.view(), Transpose::Yes, c.view(), kSide, kSide, kSide);
            };
        });
        return figure(2.0 * kSide * kSide * kSide / seconds, what);
    }

    void attention(Gpu& gpu) const
    {
        constexpr std::int64_t kLength = 256;
        constexpr std::int64_t kHeads = 4;
        constexpr std::int64_t kHeadDim = 64;
        constexpr std::int64_t kElements = kLength * kHeads * kHeadDim;
        const AttentionShape shape{1, kLength, kHeads, kHeads, kHeadDim};
        const auto heads = [](Operand& operand) { return HeadsView{operand.view(), 0, kHeads * kHeadDim}; };
        const auto operand = [] { return Operand(kElements, DType::Fp32); };
        const std::string what =
            fmt::format("causal attention of {} heads of {} over {} tokens", kHeads, kHeadDim, kLength);
        // Pairs of a query and a key that the mask leaves, two products forward and five backward.
        const double product = 2.0 * kHeads * kHeadDim * kLength * kLength / 2;
        const double forward = time(what, [&](int) {
            return [=, device = makeHostDevice(m_options.threads), q = operand(), k = operand(), v = operand(),
                    out = operand(), sums = Operand(kLength * kHeads, DType::Fp32)]() mutable {
                device->attention(shape, heads(q), heads(k), heads(v), heads(out), sums.view());
            };
        });
        const double backward = time(what + ", backward", [&](int) {
            auto device = makeHostDevice(m_options.threads);
            auto q = operand(), k = operand(), v = operand(), out = operand();
            auto sums = Operand(kLength * kHeads, DType::Fp32);
            device->attention(shape, heads(q), heads(k), heads(v), heads(out), sums.view());
            return [=, device = std::move(device), q = std::move(q), k = std::move(k), v = std::move(v),
                    out = std::move(out), sums = std::move(sums), gradient = operand(), gq = operand(), gk = operand(),
                    gv = operand()]() mutable {
                device->attentionGradient(shape, {heads(gradient), heads(q), heads(k), heads(v), heads(out),
                                                  sums.view(), heads(gq), heads(gk), heads(gv)});
            };
        });
        gpu.measuredRates[MeasuredRate::AttentionForward] = figure(2 * product / forward, what);
        gpu.measuredRates[MeasuredRate::AttentionBackward] = figure(5 * product / backward, what + ", backward");
    }

    /// SwiGLU and its gradient: what a block's pointwise steps are for the most part.
    Figure pointwise() const
    {
        constexpr std::int64_t kElements = 1 << 19;
        const std::string what = fmt::format("SwiGLU of {} elements, forward and backward", kElements);
        const double seconds = time(what, [&](int) {
            const auto operand = [] { return Operand(kElements, DType::Fp32); };
            return [device = makeHostDevice(m_options.threads), gate = operand(), up = operand(), product = operand(),
                    gradGate = operand(), gradUp = operand()]() mutable {
                device->swiGlu(gate.view(), up.view(), product.view());
                device->swiGluGradient(product.view(), gate.view(), up.view(), gradGate.view(), gradUp.view());
            };
        });
        return figure((3 + 5) * 4.0 * kElements / seconds, what); // tensors read and written
    }

    Figure optimizer() const
    {
        constexpr std::int64_t kElements = 1 << 20;
        const std::string what = fmt::format("AdamW of {} fp32 elements", kElements);
        const double seconds = time(what, [&](int) {
            const auto operand = [] { return Operand(kElements, DType::Fp32); };
            return [parameter = operand(), gradient = operand(), first = operand(), second = operand()]() mutable {
                std::memset(second.bytes(), 0, 4 * kElements);
                OptimizerRun run;
                run.parameter = parameter.bytes();
                run.gradient = gradient.bytes();
                run.moment[0] = first.bytes();
                run.moment[1] = second.bytes();
                run.count = kElements;
                stepElements(run, Optimizer::AdamW, {}, 1);
            };
        });
        return figure(28.0 * kElements / seconds, what); // reads four tensors, writes three
    }

    Figure copy() const
    {
        constexpr std::int64_t kBytes = 8 << 20;
        const std::string what = fmt::format("copies of {} MiB", kBytes >> 20);
        const double seconds = time(what, [&](int) {
            return [=, from = std::vector<char>(kBytes, 1), to = std::vector<char>(kBytes)]() mutable {
                std::memcpy(to.data(), from.data(), kBytes);
            };
        });
        return figure(2.0 * kBytes / seconds, what);
    }

    void links(Cluster& cluster) const
    {
        const auto transports = makeThreadTransports(m_options.ranks);
        const Group world{"world", m_options.ranks, 1};
        const auto seconds = [&](const std::string& what, std::int64_t elements) {
            say(what);
            constexpr int kTimes = 20;
            std::vector<double> took(transports.size() * kTimes);
            std::vector<std::thread> ranks;
            for (std::size_t rank = 0; rank < transports.size(); ++rank)
                ranks.emplace_back([&, rank] {
                    const auto communicator = transports[rank]->communicator(world);
                    std::vector<float> data(static_cast<std::size_t>(elements), 1.0F);
                    for (int i = -2; i < kTimes; ++i) {
                        communicator->barrier();
                        const auto begin = Clock::now();
                        communicator->allReduce(data.data(), elements, DType::Fp32);
                        if (i >= 0)
                            took[rank * kTimes + static_cast<std::size_t>(i)] = secondsSince(begin);
                        std::fill(data.begin(), data.end(), 1.0F);
                    }
                });
            for (std::thread& rank : ranks)
                rank.join();
            return median(took);
        };
        constexpr std::int64_t kLarge = 1 << 20;
        const std::string what =
            fmt::format("all-reduce of {} MiB between {} threads", 4 * kLarge >> 20, m_options.ranks);
        const double latency = seconds("all-reduce of 4 B between the threads", 1);
        const double large = seconds(what, kLarge);
        const double ranks = m_options.ranks;
        cluster.intraNode.kind = LinkKind::SharedMemory;
        cluster.intraNode.latency = figure(latency, "all-reduce of 4 B");
        // Bus bandwidth as nccl-tests defines it (doc/PERFORMANCE.md).
        const double moved = 4.0 * kLarge * 2 * (ranks - 1) / ranks;
        cluster.intraNode.bandwidth = figure(moved / std::max(large - latency, large / 10), what);
    }

    void files(Cluster& cluster) const
    {
        constexpr std::int64_t kBytes = 64 << 20;
        const std::string what = fmt::format("a file of {} MiB in {}", kBytes >> 20, m_options.nvmeFolder);
        say(what);
        const std::string path = (std::filesystem::path(m_options.nvmeFolder) / "shardrun-calibration.part").string();
        const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (descriptor < 0)
            throw EnvironmentError(path + ": cannot be created: " + std::strerror(errno));
        std::vector<char> data(kBytes, 1);
        const auto whole = [&](auto transfer) {
            const auto begin = Clock::now();
            std::int64_t done = 0;
            while (done < kBytes) {
                const ssize_t now = transfer(data.data() + done, kBytes - done, done);
                if (now <= 0)
                    break;
                done += now;
            }
            ::fsync(descriptor);
            return done == kBytes ? secondsSince(begin) : 0;
        };
        const double write = whole([&](char* at, std::int64_t bytes, std::int64_t offset) {
            return ::pwrite(descriptor, at, static_cast<std::size_t>(bytes), offset);
        });
        ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED); // what is cached is not the drive
        const double read = whole([&](char* at, std::int64_t bytes, std::int64_t offset) {
            return ::pread(descriptor, at, static_cast<std::size_t>(bytes), offset);
        });
        ::close(descriptor);
        std::filesystem::remove(path);
        if (write == 0 || read == 0)
            throw EnvironmentError(path + ": cannot be written and read: " + std::strerror(errno));
        cluster.nvmeWriteBandwidth = figure(kBytes / write, "write and fsync of " + what);
        cluster.nvmeReadBandwidth = figure(kBytes / read, "read of " + what);
        cluster.nvmeCapacity =
            figure(static_cast<double>(std::filesystem::space(m_options.nvmeFolder).available), "statvfs");
    }

    const CalibrationOptions& m_options;
    const std::function<void(const std::string&)>& m_progress;
};

} // namespace

Cluster calibrate(const CalibrationOptions& options, const std::function<void(const std::string&)>& progress)
{
    return Calibrator(options, progress).run();
}

} // namespace shardwright
