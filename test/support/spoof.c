// Sends a UDP datagram with the address of another as its sender, by a raw socket (CAP_NET_RAW), or prints the sender of each
// datagram that it receives.
//
//   spoof 4|6 SENDER TARGET PORT
//   spoof receive PORT
//   spoof sniff          prints the addresses of each packet that comes by its interface, in promiscuous mode
//   spoof advertise      sends a router advertisement (RFC 4861) to all on the link, with the prefix 2001:db8:bad::/64
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/ip.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/ip6.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static int send4(const char *sender, const char *target, unsigned short port) {
    struct {
        struct iphdr ip;
        struct udphdr udp;
        char text[8];
    } __attribute__((packed)) packet = {.ip = {.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP}, .text = "spoofed"};
    struct sockaddr_in to = {.sin_family = AF_INET};
    inet_pton(AF_INET, target, &to.sin_addr);
    inet_pton(AF_INET, sender, &packet.ip.saddr);
    packet.ip.daddr = to.sin_addr.s_addr;
    packet.ip.tot_len = htons(sizeof packet);
    packet.udp.source = htons(9999);
    packet.udp.dest = htons(port);
    packet.udp.len = htons(sizeof packet.udp + sizeof packet.text);
    int fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    return fd < 0 ? -1 : (int)sendto(fd, &packet, sizeof packet, 0, (void *)&to, sizeof to);
}

static unsigned short checksum6(const struct ip6_hdr *ip, const void *data, size_t length) {
    unsigned sum = 0;
    const unsigned short *words = (const void *)&ip->ip6_src;
    for (int k = 0; k < 16; k++) sum += ntohs(words[k]);
    sum += (unsigned)length + IPPROTO_UDP;
    const unsigned char *bytes = data;
    for (size_t k = 0; k < length; k++) sum += k % 2 ? bytes[k] : (unsigned)bytes[k] << 8;
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return htons((unsigned short)~sum);
}

static int send6(const char *sender, const char *target, unsigned short port) {
    struct {
        struct ip6_hdr ip;
        struct udphdr udp;
        char text[8];
    } packet = {.text = "spoofed"};
    struct sockaddr_in6 to = {.sin6_family = AF_INET6};
    size_t length = sizeof packet.udp + sizeof packet.text;
    inet_pton(AF_INET6, target, &to.sin6_addr);
    inet_pton(AF_INET6, sender, &packet.ip.ip6_src);
    packet.ip.ip6_dst = to.sin6_addr;
    packet.ip.ip6_flow = htonl(6u << 28);
    packet.ip.ip6_plen = htons((unsigned short)length);
    packet.ip.ip6_nxt = IPPROTO_UDP;
    packet.ip.ip6_hlim = 64;
    packet.udp.source = htons(9999);
    packet.udp.dest = htons(port);
    packet.udp.len = htons((unsigned short)length);
    packet.udp.check = checksum6(&packet.ip, &packet.udp, length);
    int fd = socket(AF_INET6, SOCK_RAW, IPPROTO_RAW);
    return fd < 0 ? -1 : (int)sendto(fd, &packet, sizeof packet, 0, (void *)&to, sizeof to);
}

static int receive(unsigned short port) {
    struct sockaddr_in6 here = {.sin6_family = AF_INET6, .sin6_port = htons(port)}, sender;
    char bytes[100], text[INET6_ADDRSTRLEN];
    int fd = socket(AF_INET6, SOCK_DGRAM, 0);
    if (bind(fd, (void *)&here, sizeof here) < 0) return 1;
    puts("ready");
    fflush(stdout);
    for (;;) {
        socklen_t length = sizeof sender;
        if (recvfrom(fd, bytes, sizeof bytes, 0, (void *)&sender, &length) < 0) return 1;
        printf("from %s\n", inet_ntop(AF_INET6, &sender.sin6_addr, text, sizeof text));
        fflush(stdout);
    }
}

static int sniff(void) {
    unsigned char bytes[2048];
    char from[INET6_ADDRSTRLEN], to[INET6_ADDRSTRLEN];
    struct packet_mreq all = {.mr_ifindex = (int)if_nametoindex("eth0"), .mr_type = PACKET_MR_PROMISC};
    int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
    if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all) < 0) return 1;
    puts("ready");
    for (;;) {
        fflush(stdout);
        ssize_t n = recv(fd, bytes, sizeof bytes, 0);
        if (n < 0) return 1;
        const unsigned char *ip = bytes + ETH_HLEN;
        int four = bytes[12] == 8 && bytes[13] == 0;
        if (n < ETH_HLEN + 40 && !(four && n >= ETH_HLEN + 20)) continue;
        int family = four ? AF_INET : AF_INET6;
        inet_ntop(family, ip + (four ? 12 : 8), from, sizeof from);
        inet_ntop(family, ip + (four ? 16 : 24), to, sizeof to);
        printf("from %s to %s\n", from, to);
    }
}

static int advertise(void) {
    struct {
        struct nd_router_advert head;
        struct nd_opt_prefix_info prefix;
    } message = {
        .head = {.nd_ra_type = ND_ROUTER_ADVERT, .nd_ra_curhoplimit = 64, .nd_ra_router_lifetime = htons(1800)},
        .prefix = {
            .nd_opt_pi_type = ND_OPT_PREFIX_INFORMATION,
            .nd_opt_pi_len = 4,
            .nd_opt_pi_prefix_len = 64,
            .nd_opt_pi_flags_reserved = ND_OPT_PI_FLAG_ONLINK | ND_OPT_PI_FLAG_AUTO,
            .nd_opt_pi_valid_time = htonl(3600),
            .nd_opt_pi_preferred_time = htonl(3600),
        },
    };
    struct sockaddr_in6 to = {.sin6_family = AF_INET6, .sin6_scope_id = if_nametoindex("eth0")};
    int hops = 255;
    inet_pton(AF_INET6, "ff02::1", &to.sin6_addr);
    inet_pton(AF_INET6, "2001:db8:bad::", &message.prefix.nd_opt_pi_prefix);
    int fd = socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6);
    setsockopt(fd, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, &hops, sizeof hops);
    int sent = (int)sendto(fd, &message, sizeof message, 0, (void *)&to, sizeof to);
    printf("%s\n", sent < 0 ? strerror(errno) : "sent");
    return 0;
}

int main(int count, char **arguments) {
    if (count == 2) return strcmp(arguments[1], "sniff") ? advertise() : sniff();
    if (count == 3) return receive((unsigned short)atoi(arguments[2]));
    if (count != 5) return 2;
    unsigned short port = (unsigned short)atoi(arguments[4]);
    int sent = atoi(arguments[1]) == 4 ? send4(arguments[2], arguments[3], port) : send6(arguments[2], arguments[3], port);
    printf("%s\n", sent < 0 ? strerror(errno) : "sent");
    return 0;
}
