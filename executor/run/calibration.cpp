#include "executor/run/calibration.hpp"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "core/diagnostics.hpp"
#include "executor/clock.hpp"
#include "executor/comm/transports.hpp"
#include "executor/run/calibrated_kernels.hpp"
#include "executor/run/machine.hpp"

namespace shardwright {

namespace {

Bytes physicalMemory()
{
    return Bytes(::sysconf(_SC_PHYS_PAGES)) * ::sysconf(_SC_PAGESIZE);
}

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
        cluster.hostMemory = measuredFigure(physicalMemory().asDouble(), "sysconf(_SC_PHYS_PAGES)");
        Gpu& gpu = cluster.gpu;
        gpu.name = processorName();
        gpu.computeCapability = kHostProcessor;
        gpu.memory =
            measuredFigure(physicalMemory().asDouble() / m_options.ranks, "an even share of the host's memory");
        measureKernels(gpu, m_options, m_progress);
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
    void say(const std::string& what) const
    {
        if (m_progress)
            m_progress(what);
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
                    Rotating<std::vector<float>> buffers(
                        4 * elements, [&] { return std::vector<float>(static_cast<std::size_t>(elements), 1.0F); });
                    for (int i = -2; i < kTimes; ++i) {
                        std::vector<float>& data = buffers.next();
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
            return medianSeconds(took);
        };
        constexpr std::int64_t kLarge = 1 << 20;
        const std::string what =
            fmt::format("all-reduce of {} MiB between {} threads", 4 * kLarge >> 20, m_options.ranks);
        const double latency = seconds("all-reduce of 4 B between the threads", 1);
        const double large = seconds(what, kLarge);
        const double ranks = m_options.ranks;
        cluster.intraNode.kind = LinkKind::SharedMemory;
        cluster.intraNode.latency = measuredFigure(latency, "all-reduce of 4 B");
        // Bus bandwidth as nccl-tests defines it (doc/PERFORMANCE.md).
        const double moved = 4.0 * kLarge * 2 * (ranks - 1) / ranks;
        cluster.intraNode.bandwidth = measuredFigure(moved / std::max(large - latency, large / 10), what);
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
        cluster.nvmeWriteBandwidth = measuredFigure(kBytes / write, "write and fsync of " + what);
        cluster.nvmeReadBandwidth = measuredFigure(kBytes / read, "read of " + what);
        cluster.nvmeCapacity =
            measuredFigure(static_cast<double>(std::filesystem::space(m_options.nvmeFolder).available), "statvfs");
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
