// What the proxy's epoll(7) watches: the data of each event points to a structure that begins with one of these.
#pragma once

enum watched { WATCHED_CONTROL, WATCHED_LISTENER, WATCHED_SIDE, WATCHED_BOUND, WATCHED_PEER, WATCHED_TEACHER };
