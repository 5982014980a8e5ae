// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * A scheduler as a program that serves statistics, and misbehaves on request: itself it holds the
 * scheduler, a child of it answers on the socket, with a child of its own for each connection. The
 * target of a request says how.
 *
 * statsched HOLDER OBJECT [SOCKET]
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static const char *path = "/var/run/scx/root/stats";
/* By all connections together; by this one. */
static unsigned long *asked;
static unsigned long here;

static void say(int fd, const char *text)
{
	size_t left = strlen(text);

	while (left) {
		ssize_t n = send(fd, text, left, MSG_NOSIGNAL);
		if (n <= 0)
			return;
		text += n;
		left -= n;
	}
}

/* Whether the connection goes on. */
static int answer(int fd, const char *line)
{
	char text[256];

	if (strstr(line, "stats_meta")) {
		say(fd, "{\"errno\":0,\"args\":{\"resp\":{\"nr_asked\":\"how often it was asked\"}}}\n");
	} else if (strstr(line, "\"top\"")) {
		snprintf(text, sizeof(text),
			 "{\"errno\":0,\"args\":{\"resp\":{\"nr_asked\":%lu,\"nr_here\":%lu,\"cpus\":[{\"load\":0.5}]}}}\n",
			 __sync_add_and_fetch(asked, 1), ++here);
		say(fd, text);
	} else if (strstr(line, "\"slow\"")) {
		const char *all = "{\"errno\":0,\"args\":{\"resp\":{\"slow\":true}}}\n";
		char one[2] = "";

		for (; *all; all++) {
			one[0] = *all;
			say(fd, one);
			usleep(2000);
		}
	} else if (strstr(line, "\"silent\"")) {
		/* The connection stays open until whoever asked gives up. */
		char byte;

		while (recv(fd, &byte, 1, 0) > 0)
			;
		return 0;
	} else if (strstr(line, "\"half\"")) {
		say(fd, "{\"errno\":0,");
		return 0;
	} else if (strstr(line, "\"flood\"")) {
		for (int i = 0; i < 300; i++) {
			static char block[1025];

			memset(block, 'x', 1024);
			say(fd, block);
		}
		say(fd, "\n");
	} else if (strstr(line, "\"garbage\"")) {
		say(fd, "hello\n");
	} else if (strstr(line, "\"bytes\"")) {
		say(fd, "\xff\xfe\n");
	} else if (strstr(line, "\"bare\"")) {
		say(fd, "{\"errno\":0,\"args\":{\"other\":1}}\n");
	} else if (strstr(line, "\"deep\"")) {
		for (int i = 0; i < 20000; i++)
			say(fd, "[");
		say(fd, "\n");
	} else if (strstr(line, "\"close\"")) {
		return 0;
	} else {
		say(fd, "{\"errno\":22,\"args\":{\"resp\":\"no such target\"}}\n");
	}
	return 1;
}

static void converse(int conn)
{
	static char line[300 << 10];
	size_t len = 0;

	while (len < sizeof(line) - 1) {
		ssize_t n = recv(conn, line + len, sizeof(line) - 1 - len, 0);
		if (n <= 0)
			return;
		len += n;
		line[len] = 0;
		if (line[len - 1] != '\n')
			continue;
		if (!answer(conn, line))
			return;
		len = 0;
	}
}

static void serve(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	mkdir("/var", 0755);
	mkdir("/var/run", 0755);
	mkdir("/var/run/scx", 0755);
	mkdir("/var/run/scx/root", 0755);
	unlink(path);
	strcpy(addr.sun_path, path);
	if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(fd, 8)) {
		perror(path);
		exit(1);
	}
	printf("serving\n");
	fflush(stdout);
	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		int conn = accept(fd, NULL, NULL);

		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			close(fd);
			converse(conn);
			exit(0);
		}
		close(conn);
	}
}

int main(int argc, char **argv)
{
	pid_t server;

	if (argc < 3)
		return 2;
	asked = mmap(NULL, sizeof(*asked), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (asked == MAP_FAILED)
		return 1;
	if (argc > 3)
		path = argv[3];
	server = fork();
	if (server == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve();
	}
	execl(argv[1], argv[1], "hold", argv[2], NULL);
	perror(argv[1]);
	return 1;
}
