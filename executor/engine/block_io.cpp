#include "executor/engine/block_io.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <new>

#include <unistd.h>

#ifdef SHARDWRIGHT_LIBURING
#include <liburing.h>
#endif

#include "core/units.hpp"

namespace shardwright {

namespace {

constexpr std::int64_t kBlock = std::int64_t{1} << 20; // DeepSpeed's aio block_size

/// One block of aligned memory.
class AlignedBlock {
public:
    AlignedBlock()
        : m_data(static_cast<std::byte*>(
              ::operator new (static_cast<std::size_t>(kBlock), std::align_val_t{kIoAlignment})))
    {
    }
    ~AlignedBlock() { ::operator delete (m_data, std::align_val_t{kIoAlignment}); }
    AlignedBlock(const AlignedBlock&) = delete;
    AlignedBlock& operator=(const AlignedBlock&) = delete;
    std::byte* data() { return m_data; }

private:
    std::byte* m_data;
};

/// A stretch of a file that goes through one block.
struct Stretch {
    std::int64_t offset = 0;
    std::int64_t bytes = 0; // of content
    std::int64_t padded() const { return roundUp(bytes, kIoAlignment); }
};

class PlainIo final : public BlockIo {
public:
    int read(int descriptor, std::byte* to, std::int64_t bytes) override
    {
        for (std::int64_t offset = 0; offset < bytes; offset += kBlock) {
            const Stretch stretch{offset, std::min(kBlock, bytes - offset)};
            for (std::int64_t done = 0; done < stretch.bytes;) {
                const ssize_t got = ::pread(descriptor, m_block.data() + done,
                                            static_cast<std::size_t>(stretch.padded() - done), offset + done);
                if (got < 0 && errno == EINTR)
                    continue;
                if (got <= 0)
                    return got < 0 ? errno : EIO;
                done += got;
            }
            std::memcpy(to + offset, m_block.data(), static_cast<std::size_t>(stretch.bytes));
        }
        return 0;
    }

    int write(int descriptor, const std::byte* from, std::int64_t bytes) override
    {
        for (std::int64_t offset = 0; offset < bytes; offset += kBlock) {
            const Stretch stretch{offset, std::min(kBlock, bytes - offset)};
            std::memcpy(m_block.data(), from + offset, static_cast<std::size_t>(stretch.bytes));
            std::memset(m_block.data() + stretch.bytes, 0, static_cast<std::size_t>(stretch.padded() - stretch.bytes));
            for (std::int64_t done = 0; done < stretch.padded();) {
                const ssize_t put = ::pwrite(descriptor, m_block.data() + done,
                                             static_cast<std::size_t>(stretch.padded() - done), offset + done);
                if (put < 0 && errno == EINTR)
                    continue;
                if (put <= 0)
                    return put < 0 ? errno : EIO;
                done += put;
            }
        }
        return 0;
    }

    std::string name() const override { return "pread/pwrite"; }

private:
    AlignedBlock m_block;
};

#ifdef SHARDWRIGHT_LIBURING

constexpr unsigned kDepth = 8; // blocks under way; DeepSpeed's aio queue_depth

class UringIo final : public BlockIo {
public:
    UringIo() { m_ready = ::io_uring_queue_init(kDepth, &m_ring, 0) == 0; }
    ~UringIo() override
    {
        if (m_ready)
            ::io_uring_queue_exit(&m_ring);
    }
    UringIo(const UringIo&) = delete;
    UringIo& operator=(const UringIo&) = delete;

    bool ready() const { return m_ready; }

    int read(int descriptor, std::byte* to, std::int64_t bytes) override
    {
        return transfer(descriptor, to, nullptr, bytes);
    }
    int write(int descriptor, const std::byte* from, std::int64_t bytes) override
    {
        return transfer(descriptor, nullptr, from, bytes);
    }
    std::string name() const override { return "io_uring"; }

private:
    struct Slot {
        AlignedBlock block;
        Stretch stretch;
        bool busy = false;
    };

    void submit(int descriptor, Slot& slot, const std::byte* from)
    {
        io_uring_sqe* entry = ::io_uring_get_sqe(&m_ring); // never full: one entry a slot
        const auto length = static_cast<unsigned>(slot.stretch.padded());
        if (from != nullptr)
            ::io_uring_prep_write(entry, descriptor, slot.block.data(), length,
                                  static_cast<std::uint64_t>(slot.stretch.offset));
        else
            ::io_uring_prep_read(entry, descriptor, slot.block.data(), length,
                                 static_cast<std::uint64_t>(slot.stretch.offset));
        ::io_uring_sqe_set_data(entry, &slot);
        slot.busy = true;
    }

    /// A block that came back short or was interrupted is done again through the plain calls.
    int finish(int descriptor, Slot& slot, int result, std::byte* to, const std::byte* from)
    {
        slot.busy = false;
        const Stretch& stretch = slot.stretch;
        const std::int64_t wanted = from != nullptr ? stretch.padded() : stretch.bytes;
        if (result < 0 && result != -EINTR && result != -EAGAIN)
            return -result;
        if (result < wanted) {
            for (std::int64_t done = std::max(result, 0) / kIoAlignment * kIoAlignment; done < wanted;) {
                const auto length = static_cast<std::size_t>(stretch.padded() - done);
                const ssize_t moved =
                    from != nullptr ? ::pwrite(descriptor, slot.block.data() + done, length, stretch.offset + done)
                                    : ::pread(descriptor, slot.block.data() + done, length, stretch.offset + done);
                if (moved < 0 && errno == EINTR)
                    continue;
                if (moved <= 0)
                    return moved < 0 ? errno : EIO;
                done += moved;
            }
        }
        if (to != nullptr)
            std::memcpy(to + stretch.offset, slot.block.data(), static_cast<std::size_t>(stretch.bytes));
        return 0;
    }

    int transfer(int descriptor, std::byte* to, const std::byte* from, std::int64_t bytes)
    {
        int failed = 0;
        std::int64_t next = 0;
        unsigned underWay = 0;
        while (underWay > 0 || (next < bytes && failed == 0)) {
            for (Slot& slot : m_slots) {
                if (slot.busy || next >= bytes || failed != 0)
                    continue;
                slot.stretch = {next, std::min(kBlock, bytes - next)};
                next += slot.stretch.bytes;
                if (from != nullptr) {
                    std::memcpy(slot.block.data(), from + slot.stretch.offset,
                                static_cast<std::size_t>(slot.stretch.bytes));
                    std::memset(slot.block.data() + slot.stretch.bytes, 0,
                                static_cast<std::size_t>(slot.stretch.padded() - slot.stretch.bytes));
                }
                submit(descriptor, slot, from);
                ++underWay;
            }
            int status = ::io_uring_submit_and_wait(&m_ring, 1);
            if (status < 0 && status != -EINTR)
                return -status;
            io_uring_cqe* done = nullptr;
            while (::io_uring_peek_cqe(&m_ring, &done) == 0) {
                Slot& slot = *static_cast<Slot*>(::io_uring_cqe_get_data(done));
                const int result = done->res;
                ::io_uring_cqe_seen(&m_ring, done);
                --underWay;
                status = finish(descriptor, slot, result, to, from);
                failed = failed != 0 ? failed : status;
            }
        }
        return failed;
    }

    io_uring m_ring{};
    bool m_ready = false;
    std::array<Slot, kDepth> m_slots;
};

#endif

} // namespace

std::unique_ptr<BlockIo> makePlainIo()
{
    return std::make_unique<PlainIo>();
}

std::unique_ptr<BlockIo> makeBlockIo()
{
#ifdef SHARDWRIGHT_LIBURING
    if (auto ring = std::make_unique<UringIo>(); ring->ready())
        return ring;
#endif
    return makePlainIo();
}

} // namespace shardwright
