// The only process of the emulated machine (tests/native/emulator.py): runs each line of /jobs,
// whose third argument names a file of results, and writes what became of it to the serial port.
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace {

int run(std::vector<std::string>& words) {
    const pid_t child = fork();
    if (child == 0) {
        std::vector<char*> arguments;
        for (std::string& word : words) arguments.push_back(word.data());
        arguments.push_back(nullptr);
        execv(arguments[0], arguments.data());
        _exit(127);
    }
    int status = -1;
    waitpid(child, &status, 0);
    return status;
}

// In hexadecimal lines, each with its number and a sum, because a serial port may lose characters.
void print(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    unsigned char bytes[64];
    for (int line = 0;; ++line) {
        file.read(reinterpret_cast<char*>(bytes), sizeof(bytes));
        const int count = static_cast<int>(file.gcount());
        if (count == 0) return;
        unsigned sum = 0;
        std::printf("D %d ", line);
        for (int i = 0; i < count; ++i) {
            std::printf("%02x", bytes[i]);
            sum += bytes[i];
        }
        std::printf(" %u\n", sum);
    }
}

}  // namespace

int main() {
    mkdir("/dev", 0755);
    mount("devtmpfs", "/dev", "devtmpfs", 0, nullptr);
    const int port = open("/dev/ttyS0", O_RDWR);
    dup2(port, STDOUT_FILENO);
    dup2(port, STDERR_FILENO);
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    std::ifstream jobs("/jobs");
    for (std::string job; std::getline(jobs, job);) {
        std::istringstream stream(job);
        std::vector<std::string> words;
        for (std::string word; stream >> word;) words.push_back(word);
        const int status = run(words);
        std::printf("JOB %s %d\n", words[0].c_str(), status);
        if (status == 0) print(words[3]);
    }
    std::puts("FINISHED");
    std::fflush(stdout);
    sleep(1);
    reboot(RB_POWER_OFF);
}
